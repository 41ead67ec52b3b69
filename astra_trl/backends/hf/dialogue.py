"""Conversations as token ids: plain text with a separator, or turns of a model's chat template.

A context is made of the ids of its utterances, each tokenised alone, and of what the model sampled as it sampled it:
encoding the whole text again would change a few of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from astra_trl.backends.api.thinking import begins_thinking, without_thinking
from astra_trl.backends.base import Message, Prefix
from astra_trl.errors import InputError


@dataclass(frozen=True, slots=True)
class PlainRow:
    """One side of a conversation; `ids` is what the model continues."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class ChatRow:
    """The same as messages (role and what was said, in parts), and the text that `ids` stands for."""

    ids: list[int]
    messages: "Messages"
    text: str


Row = PlainRow | ChatRow


def row_from_json(data: dict[str, Any]) -> Row:
    """The row whose fields these are, as `dataclasses.asdict` gives them."""
    if "messages" not in data:
        return PlainRow(data["ids"])
    messages = tuple((role, tuple(parts)) for role, parts in data["messages"])
    return ChatRow(data["ids"], messages, data["text"])


Messages = tuple[tuple[str, tuple[str, ...]], ...]


class Heard(NamedTuple):
    """A row with the other side's utterance: its tokens are `row.ids[start:stop]`."""

    row: Row
    start: int
    stop: int


class PlainText:
    """Utterances one after the other, each followed by the separator."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: str) -> None:
        self.tokenizer = tokenizer
        # A decoder's tokenizer opens a text with BOS or with nothing; some add an EOS, which would end every context.
        self.head = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        (self.separator_ids,) = encode_all(tokenizer, [separator])
        # A model cannot continue nothing.
        self.nothing = [tokenizer.eos_token_id or 0]

    def open(self, prompts: Sequence[str | Sequence[Message]]) -> list[Row]:
        texts = [[p] if isinstance(p, str) else [message["content"] for message in p] for p in prompts]
        encoded = iter(encode_all(self.tokenizer, [text for said in texts for text in said]))
        rows: list[Row] = []
        for prompt, said in zip(prompts, texts, strict=True):
            ids = [i for _ in said for i in (*next(encoded), *self.separator_ids)]
            if isinstance(prompt, Prefix):
                ids = ids[: len(ids) - len(self.separator_ids)]
            rows.append(PlainRow(self.head + ids or self.nothing))
        return rows

    def shown(self, text: str) -> str:
        """What the other side is to see of what was sampled."""
        return text

    def said(self, row: Row, ids: list[int], text: str) -> Row:
        return PlainRow(row.ids + ids + self.separator_ids)

    def heard(self, rows: Sequence[Row], texts: Sequence[str]) -> Iterator[Heard]:
        for row, ids in zip(rows, encode_all(self.tokenizer, texts), strict=True):
            start = len(row.ids)
            yield Heard(PlainRow(row.ids + ids + self.separator_ids), start, start + len(ids))


class ChatTemplate:
    """Turns of a chat model, through its tokenizer's own template.

    Two turns of one role in a row become one, joined by the separator, as many templates refuse them. A system prompt
    goes into the first user turn where the template has no place for one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        separator: str,
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if tokenizer.chat_template is None:
            raise InputError(
                "the tokenizer has no chat template: leave chat out, or set tokenizer.chat_template to the model's"
            )
        self.tokenizer = tokenizer
        self.separator = separator
        self.template_kwargs = template_kwargs or {}
        self.system_prompt = system_prompt
        first = self._row((("user", ("a",)),), None)
        self.head = first.ids[:1] if first.ids[:1] == [tokenizer.bos_token_id] else []
        self._thinks_first = begins_thinking(first.text)
        try:
            self._render((("system", ("a",)), ("user", ("b",))))
            self.system_role = "system"
        except InputError:
            self.system_role = "user"

    def open(self, prompts: Sequence[str | Sequence[Message]]) -> list[Row]:
        rows: list[Row] = []
        for prompt in prompts:
            turns = [("user", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
            if self.system_prompt is not None:
                turns.insert(0, ("system", self.system_prompt))
            messages: Messages = ()
            for role, content in turns:
                messages = _added(messages, self.system_role if role == "system" else role, content)
            # Templates refuse a chat of nothing; what is said first opens it.
            rows.append(self._row(messages, None) if messages else ChatRow([], (), ""))
        return rows

    def shown(self, text: str) -> str:
        """What the other side is to see of what was sampled, and the chat to keep: not what was thought."""
        return without_thinking(text, self._thinks_first)

    def said(self, row: Row, ids: list[int], text: str) -> Row:
        assert isinstance(row, ChatRow)
        return ChatRow(row.ids + ids, _added(row.messages, "assistant", self.shown(text)), row.text + text)

    def heard(self, rows: Sequence[Row], texts: Sequence[str]) -> Iterator[Heard]:
        for row, text in zip(rows, texts, strict=True):
            assert isinstance(row, ChatRow)
            yield self._heard(_added(row.messages, "user", text), row)

    def _row(self, messages: Messages, before: ChatRow | None) -> ChatRow:
        row = self._heard(messages, before).row
        assert isinstance(row, ChatRow)
        return row

    def _heard(self, messages: Messages, before: ChatRow | None) -> Heard:
        """The row of these messages. It goes on from the ids of `before` where the template left that text as it was,
        and is encoded anew where it changed it."""
        text = self._render(messages)
        ids: list[int] = []
        position = 0
        if before is not None and text.startswith(before.text):
            ids, position = list(before.ids), len(before.text)
        start = stop = len(ids)
        for first, last in self._utterances(text, messages):
            if first >= position:
                ids += self._template_ids(text[position:first])
                start = len(ids)
                ids += encode_all(self.tokenizer, [text[first:last]])[0]
                stop, position = len(ids), last
        ids += self._template_ids(text[position:])
        return Heard(ChatRow(ids, messages, text), start, stop)

    def _utterances(self, text: str, messages: Messages) -> list[tuple[int, int]]:
        """Where in the text each part of each message stands; only the last message's where the template has
        rewritten what came before."""
        marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
        rest = self._render(tuple((role, (mark,)) for (role, _), mark in zip(messages, marks, strict=True)))
        pieces = []
        for mark in marks:
            piece, found, rest = rest.partition(mark)
            if not found:
                raise InputError(f"the chat template leaves out what was said: mark {mark!r} of a message is missing")
            pieces.append(piece)
        spans: list[tuple[int, int]] = []
        position = 0
        for piece, (_, parts) in zip(pieces, messages, strict=True):
            start = position + len(piece)
            content = self._as_rendered(text, start, parts)
            if content is None or text[position:start] != piece:
                break
            spans += _part_spans(start, content, parts, self.separator)
            position = start + len(content)
        if text[position:] == rest:
            return spans
        parts = messages[-1][1]
        whole = self.separator.join(parts)
        for content in (whole, whole.strip()):
            start = len(text) - len(rest) - len(content)
            if text.endswith(content + rest):
                return _part_spans(start, content, parts, self.separator)
        raise InputError("the chat template changes what was said last, so that its tokens cannot be told apart")

    def _as_rendered(self, text: str, start: int, parts: tuple[str, ...]) -> str | None:
        # Templates strip what they are given, or leave it as it is.
        whole = self.separator.join(parts)
        return next((content for content in (whole, whole.strip()) if text.startswith(content, start)), None)

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    def _render(self, messages: Messages) -> str:
        chat = [{"role": role, "content": self.separator.join(parts)} for role, parts in messages]
        try:
            return self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except TemplateError as error:
            roles = ", ".join(role for role, _ in messages)
            raise InputError(f"the chat template refuses a conversation of {roles}: {error}") from error


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of utterances; what looks like a special token in one is ordinary text."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _added(messages: Messages, role: str, content: str) -> Messages:
    if messages and messages[-1][0] == role:
        return (*messages[:-1], (role, (*messages[-1][1], content)))
    return (*messages, (role, (content,)))


def _part_spans(start: int, content: str, parts: tuple[str, ...], separator: str) -> list[tuple[int, int]]:
    # `content` is the parts joined, as it is or stripped.
    whole = separator.join(parts)
    at = -(len(whole) - len(whole.lstrip())) if content != whole else 0
    spans = []
    for part in parts:
        spans.append((start + min(max(at, 0), len(content)), start + min(max(at + len(part), 0), len(content))))
        at += len(part) + len(separator)
    return spans
