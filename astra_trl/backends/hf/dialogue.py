"""Conversations as token ids: plain text with a separator, or turns of a model's chat template.

A context consists of the ids of its utterances, each tokenised alone, and of sampled ids exactly as sampled: to encode
the whole text again would change a few of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from astra_trl.backends.api.thinking import begins_thinking, without_thinking
from astra_trl.backends.base import Message, Prefix
from astra_trl.errors import InputError
from astra_trl.libraries import ERRORS, reason

Messages = tuple[tuple[str, tuple[str, ...]], ...]  # role and utterances of each turn
Prompts = Sequence[str | Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Row:
    """One side of a conversation. The model continues `ids`; in a chat, they stand for the rendered messages."""

    ids: list[int]
    messages: Messages = ()
    text: str = ""


LongerRow = tuple[Row, int, int]  # a row with a new utterance of the other side, and start and stop of its tokens


def row_from_json(data: dict[str, Any]) -> Row:
    """Return the row from the JSON of its `dataclasses.asdict`."""
    messages = tuple((role, tuple(parts)) for role, parts in data.get("messages", ()))
    return Row(data["ids"], messages, data.get("text", ""))


class PlainText:
    """Utterances in a row, each followed by the separator."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: str) -> None:
        self.tokenizer = tokenizer
        # A decoder's tokenizer opens a text with BOS or nothing; some add an EOS, which would end every context.
        self.head = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        (self.separator_ids,) = encode_all(tokenizer, [separator])
        self.empty_context = [tokenizer.eos_token_id or 0]  # a model needs at least one token

    def open(self, prompts: Prompts) -> list[Row]:
        texts = [[p] if isinstance(p, str) else [message["content"] for message in p] for p in prompts]
        encoded = iter(encode_all(self.tokenizer, [text for utterances in texts for text in utterances]))
        rows: list[Row] = []
        for prompt, utterances in zip(prompts, texts, strict=True):
            ids = [i for _ in utterances for i in (*next(encoded), *self.separator_ids)]
            if isinstance(prompt, Prefix):
                ids = ids[: len(ids) - len(self.separator_ids)]
            rows.append(Row(self.head + ids or self.empty_context))
        return rows

    def visible_part(self, text: str) -> str:
        """Return the part of a sampled text that the other side sees."""
        return text

    def append_own(self, row: Row, ids: list[int], text: str) -> Row:
        """Return the row with a sampled utterance."""
        return Row(row.ids + ids + self.separator_ids)

    def append_other(self, rows: Sequence[Row], texts: Sequence[str]) -> Iterator[LongerRow]:
        """Yield the rows with an utterance of the other side each."""
        for row, ids in zip(rows, encode_all(self.tokenizer, texts), strict=True):
            start = len(row.ids)
            yield Row(row.ids + ids + self.separator_ids), start, start + len(ids)


class ChatTemplate:
    """Turns of a chat model, through its tokenizer's own template.

    Consecutive turns of one role become one, joined by the separator, because many templates refuse them. If the
    template has no place for a system prompt, it goes into the first user turn.
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
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: leave chat out, or set its "
                "chat_template to the model's"
            )
        self.tokenizer = tokenizer
        self.separator = separator
        self.template_kwargs = template_kwargs or {}
        self.system_prompt = system_prompt
        first = self._encode((("user", ("a",)),), None)[0]
        self.head = first.ids[:1] if first.ids[:1] == [tokenizer.bos_token_id] else []
        self._thinks_first = begins_thinking(first.text)
        mark = "\ue000system\ue001"
        try:
            rendered = self._render((("system", (mark,)), ("user", ("b",))))
        except InputError:
            rendered = ""
        self.system_role = "system" if mark in rendered else "user"  # some templates drop it without an error

    def open(self, prompts: Prompts) -> list[Row]:
        rows: list[Row] = []
        for prompt in prompts:
            turns = [("user", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
            if self.system_prompt is not None:
                turns.insert(0, ("system", self.system_prompt))
            messages: Messages = ()
            for role, content in turns:
                messages = _add(messages, self.system_role if role == "system" else role, content)
            # Templates refuse an empty chat; the first utterance opens it.
            rows.append(self._encode(messages, None)[0] if messages else Row([]))
        return rows

    def visible_part(self, text: str) -> str:
        """Return the part of a sampled text that the other side sees, and that stays in the chat: no thoughts."""
        return without_thinking(text, self._thinks_first)

    def append_own(self, row: Row, ids: list[int], text: str) -> Row:
        """Return the row with a sampled utterance."""
        return Row(row.ids + ids, _add(row.messages, "assistant", self.visible_part(text)), row.text + text)

    def append_other(self, rows: Sequence[Row], texts: Sequence[str]) -> Iterator[LongerRow]:
        """Yield the rows with an utterance of the other side each."""
        for row, text in zip(rows, texts, strict=True):
            yield self._encode(_add(row.messages, "user", text), row)

    def _encode(self, messages: Messages, before: Row | None) -> LongerRow:
        """Return the row of these messages, with start and stop of the ids of the last utterance.

        It continues the ids of `before` if the template left that text as it was, or else is encoded anew.
        """
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
        return Row(ids, messages, text), start, stop

    def _utterances(self, text: str, messages: Messages) -> list[tuple[int, int]]:
        """Return the spans of all utterances in the text, or of the last message alone if the rest was rewritten."""
        marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
        rest = self._render(tuple((role, (mark,)) for (role, _), mark in zip(messages, marks, strict=True)))
        pieces = []
        for mark in marks:
            piece, separator, rest = rest.partition(mark)
            if not separator:
                raise InputError(f"the chat template leaves a message out: its mark {mark!r} is missing")
            pieces.append(piece)
        spans: list[tuple[int, int]] = []
        position = 0
        for piece, (_, parts) in zip(pieces, messages, strict=True):
            start = position + len(piece)
            content = next((form for form in self._forms(parts) if text.startswith(form, start)), None)
            if content is None or text[position:start] != piece:
                break
            spans += _part_spans(start, content, parts, self.separator)
            position = start + len(content)
        if text[position:] == rest:
            return spans
        parts = messages[-1][1]
        for content in self._forms(parts):
            if text.endswith(content + rest):
                start = len(text) - len(rest) - len(content)
                return _part_spans(start, content, parts, self.separator)
        raise InputError("the chat template changes the last message, so that its tokens cannot be identified")

    def _forms(self, parts: tuple[str, ...]) -> tuple[str, str]:
        # Templates leave a message as it is, or strip it.
        whole = self.separator.join(parts)
        return whole, whole.strip()

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    def _render(self, messages: Messages) -> str:
        chat = [{"role": role, "content": self.separator.join(parts)} for role, parts in messages]
        try:
            return self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except (TemplateError, *ERRORS) as error:  # templates raise by themselves, or fail at what they expect
            roles = ", ".join(role for role, _ in messages)
            raise InputError(f"the chat template refuses a conversation of {roles}: {reason(error)}") from error


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of utterances, in which special tokens are ordinary text."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _add(messages: Messages, role: str, content: str) -> Messages:
    if messages and messages[-1][0] == role:
        return (*messages[:-1], (role, (*messages[-1][1], content)))
    return (*messages, (role, (content,)))


def _part_spans(start: int, content: str, parts: tuple[str, ...], separator: str) -> list[tuple[int, int]]:
    # `content` is the joined parts, as they are or stripped.
    whole = separator.join(parts)
    at = -(len(whole) - len(whole.lstrip())) if content != whole else 0
    spans = []
    for part in parts:
        spans.append((start + min(max(at, 0), len(content)), start + min(max(at + len(part), 0), len(content))))
        at += len(part) + len(separator)
    return spans
