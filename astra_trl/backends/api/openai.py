"""A backend on any OpenAI-compatible endpoint: hosted models, vLLM, TGI, `transformers serve`."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from astra_trl.backends.api.calls import MAX_RETRIES, Answer, Caller, CallFailed, retry_after
from astra_trl.backends.api.completions import error_in, read_answer
from astra_trl.backends.api.keys import KEY_VARIABLE, URL_VARIABLE, Key, checked_base_url
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat, whole_characters
from astra_trl.backends.api.prompt_logprobs import NoLogprobs, PromptLogprobs, reading
from astra_trl.backends.api.response_cache import ResponseCache
from astra_trl.backends.base import SamplingParams
from astra_trl.errors import BudgetSpent, InputError, MissingExtra
from astra_trl.parsing import parse_json

try:
    import openai
except ImportError as missing:
    raise MissingExtra(
        "an OpenAI-compatible endpoint needs the openai package: pip install 'astra-trl[api]'"
    ) from missing

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 32  # far more than any text has: an endpoint that overlooks max_new_tokens is cut there
MOST_BYTES = 2**26  # of an answer's body; log-probabilities of a long conversation take some megabytes
UNSENT = ("min_new_tokens", "top_k", "repetition_penalty")  # of the sampling, as OpenAI's API has none of them
PASSING = (408, 409, 429)  # statuses, beside 5xx, that another attempt may not meet
REFUSALS = (401, 403, 404)  # that no later call would mend


@dataclass(frozen=True)
class Request:
    """The body of a request, what makes an answer of a response's body, and its key in a cache."""

    body: Mapping[str, Any]
    read: Callable[[bytes], Answer]
    key: str = ""

    @property
    def about_tokens(self) -> int:
        said = self.body["prompt"] if "prompt" in self.body else "".join(m["content"] for m in self.body["messages"])
        longest = next((self.body[name] for name in ("max_tokens", "max_completion_tokens") if name in self.body), 0)
        return len(said) // 3 + 8 * len(self.body.get("messages", ())) + longest


class OpenAIBackend(MessagesBackend):
    """Samples from an endpoint, by chat completions or by plain ones.

    The key is read from the environment variable `OPENAI_API_KEY` and appears nowhere else. Connections that fail,
    timeouts, statuses 408, 409, 429 and 5xx and bodies that are no completion are tried again, after pauses that grow
    to 30 seconds or that Retry-After asks for; by default a server may be away for 75 seconds. A call that fails for
    good gives a `Sample` with an `error`; what no later call would mend (a refused key, an unknown model, a request
    that is refused before any was answered) is an `InputError`. What a content filter keeps back is an empty answer:
    neither harmless nor harmful, in no figure of harm and without a reward.

    Args:
        model (`str`):
            The endpoint's name of the model.
        base_url (`str`, *optional*):
            The endpoint, as `"http://localhost:8000/v1"`; `OPENAI_BASE_URL` or OpenAI's own by default.
        chat (`bool`, *optional*, defaults to `True`):
            Whether conversations go over as messages. Else as one text that the model continues, each utterance
            followed by a line break, as with [`HFBackend`].
        sampling (`SamplingParams`, *optional*):
            `max_new_tokens`, `temperature`, `top_p` and `stop_strings` are sent; where others are set, a log line
            says that they are not, unless `extra_body` has them.
        prompt_logprobs (`str`, *optional*, defaults to `"none"`):
            How the endpoint tells the log-probabilities of what it reads, which is a call more an exchange: `"echo"`
            (plain completions with `echo` and `logprobs`) or `"vllm"` (its field `prompt_logprobs`). An endpoint that
            then gives none is an `InputError` at the first call.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts after the first one.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds of a server's silence after which an attempt has failed, and that an answer, once it has begun,
            may take to arrive.
        max_characters (`int`, *optional*):
            Where a longer answer is cut; defaults to 32 for each of `max_new_tokens`.
        response_cache (`str`, *optional*):
            A folder in which answers are kept: an equal request is not made again.
        extra_body (`Mapping[str, Any]`, *optional*):
            More fields of every request, as vLLM's `{"repetition_penalty": 1.1}`.
        limiter (`Limiter`, *optional*):
            Shared with another backend.
        limits:
            Fields of [`Limits`]: `max_concurrency`, `requests_per_minute`, `max_total_tokens`, ...
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        chat: bool = True,
        sampling: SamplingParams | None = None,
        prompt_logprobs: PromptLogprobs = "none",
        max_retries: int = MAX_RETRIES,
        timeout: float = 120.0,
        max_characters: int | None = None,
        response_cache: str | os.PathLike[str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        limiter: Limiter | None = None,
        **limits: Any,
    ) -> None:
        base_url = checked_base_url(base_url or os.environ.get(URL_VARIABLE) or None)
        self._key = Key()
        if not self._key and base_url is None:
            raise InputError(f"no key for {model!r}: set {KEY_VARIABLE}, or give the base_url of a server without one")
        if timeout <= 0 or max_retries < 0:
            raise InputError(f"timeout must be above 0 and max_retries 0 or more, got {timeout} and {max_retries}")
        sampling = sampling or SamplingParams()
        super().__init__(
            Caller(limiter or Limiter(Limits(**limits)), max_retries),
            sampling,
            CHARACTERS_PER_TOKEN * sampling.max_new_tokens if max_characters is None else max_characters,
        )
        self.model = model
        self.chat = chat
        self.gives_logprobs = prompt_logprobs != "none"
        self._logprobs = reading(prompt_logprobs, chat)
        self._extra_body = dict(extra_body or {})
        unsent = [
            n for n in UNSENT if getattr(sampling, n) != getattr(SamplingParams(), n) and n not in self._extra_body
        ]
        if unsent:
            logger.warning("%s of %r: endpoints have no such field, so it is not sent", ", ".join(unsent), model)
        self._cache = None if response_cache is None else ResponseCache(response_cache)
        self._answered = self._gave_logprobs = False
        # OpenAI's newest models refuse the old name of the limit, and other servers do not know the new one.
        self._limit = "max_completion_tokens" if base_url is None and chat else "max_tokens"
        self._client = openai.OpenAI(
            api_key=self._key.sent() or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [partial(_read, seconds=timeout)]}),
        )
        endpoint = self._client.chat.completions if chat else self._client.completions
        self._create = endpoint.with_raw_response.create
        self.address = str(self._client.base_url).rstrip("/")

    @property
    def description(self) -> dict[str, Any]:
        """What tells this model from others, as JSON; nothing of the key."""
        # A folder's name may be the model's: where it lies is not for others.
        name = "/".join(PurePath(self.model).parts[-2:]) if PurePath(self.model).is_absolute() else self.model
        return {
            "backend": "OpenAIBackend",
            "model": name,
            "host": urlsplit(self.address).netloc,
            "api": "chat completions" if self.chat else "completions",
            "sampling": asdict(self.sampling),
        }

    def hidden(self, text: str) -> str:
        return self._key.hidden(text)

    def said(self, rows: Sequence[Row]) -> list[Answer]:
        read = partial(read_answer, chat=self.chat)
        return self._answers([Request(self._body(row.messages, row.turn_seed), read) for row in rows])

    def likelihoods(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Answer]:
        if self._logprobs.needs_tail:
            (answer,) = self._answers([Request(*self._logprobs.asking_for_tail(self._body))])
            if answer.error is not None:
                return [answer] * len(rows)
            self._logprobs.tail = answer.text
        asked = [
            Request(*self._logprobs.asking(partial(self._body, seed=row.turn_seed), row.messages, text))
            for row, text in zip(rows, texts, strict=True)
            if text
        ]
        found = iter(self._answers(asked))
        return [next(found) if text else Answer() for text in texts]

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int = 0) -> dict[str, Any]:
        sampling = self.sampling
        said: dict[str, Any] = (
            {"messages": as_chat(messages)}
            if self.chat
            else {"prompt": whole_characters("".join(message["content"] for message in messages))}
        )
        wanted: dict[str, Any] = {self._limit: sampling.max_new_tokens, "temperature": sampling.temperature}
        wanted |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        wanted |= {"stop": list(sampling.stop_strings)} if sampling.stop_strings else {}
        return {"model": self.model, **said, "seed": seed % 2**31, **wanted, **self._extra_body}

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        known: list[Answer | None] = [None] * len(requests)
        if self._cache is not None:
            requests = [replace(request, key=self._cache.key(self.address, request.body)) for request in requests]
            known = [self._cache.get(request.key) for request in requests]
        asked = [[request] for request, answer in zip(requests, known, strict=True) if answer is None]
        fresh = iter(self.caller.each(self._attempt, asked, [request.about_tokens for (request,) in asked]))
        return [next(fresh) if answer is None else answer for answer in known]

    def _attempt(self, requests: Sequence[Request]) -> list[Answer]:
        (request,) = requests
        answer = self._asked(request)
        self._answered = True
        if self._cache is not None:
            answer = replace(answer, text=self.hidden(answer.text))
            self._cache.put(request.key, answer)
        return [answer]

    def _asked(self, request: Request) -> Answer:
        refused, failed = None, ""
        try:
            response = self._create(extra_body=dict(request.body), **_required(request.body))
        except openai.APIStatusError as error:
            refused, failed = error.response, f"{type(error).__name__}: {error}"
        except openai.APIError as error:  # no connection, or none that lasted
            failed = f"{type(error).__name__}: {error} {error.__cause__ or ''}"
        # Not within the except clause: the errors of the client hold the request, and that the key.
        if refused is not None:
            return self._refused(refused, self._key.reason(failed))
        if failed:
            raise CallFailed(self._key.reason(failed))
        try:
            return request.read(response.content)
        except NoLogprobs as error:
            missing = error.reason
        except CallFailed as error:
            raise CallFailed(self._key.reason(error.reason), error.again) from None
        if self._gave_logprobs:
            raise CallFailed(self._key.reason(missing))
        raise InputError(
            f"{self.address} gives no log-probabilities of prompts in the way that was asked for: choose another "
            f"prompt_logprobs, or 'none' ({self._key.reason(missing)})"
        )

    def _refused(self, response: Any, reason: str) -> Answer:
        """What a status that is no success means; raises but for a content filter."""
        status = response.status_code
        try:
            code, _ = error_in(parse_json(response.content))
        except ValueError:
            code = ""
        if status == 400 and code == "content_filter":
            return Answer(filtered=True)
        if code == "insufficient_quota":
            raise BudgetSpent(f"{self.address} gives no more to this key: {reason}")
        if status in PASSING or status >= 500:
            raise CallFailed(reason, after=retry_after(response.headers, time.time()))
        if status in REFUSALS:
            raise InputError(
                f"{self.address} refuses model {self.model!r} (HTTP {status}): check the name, the address and "
                f"{KEY_VARIABLE} ({reason})"
            )
        if not self._answered and code != "context_length_exceeded":
            raise InputError(
                f"{self.address} refuses what it was asked (HTTP {status}): check how the target samples, and "
                f"extra_body ({reason})"
            )
        raise CallFailed(reason, again=False)  # others were answered, so that it is this conversation


def _required(body: Mapping[str, Any]) -> dict[str, Any]:
    # What the client insists on; all else goes over as it is.
    return {name: body[name] for name in ("model", "messages", "prompt") if name in body}


def _read(response: Any, seconds: float) -> None:
    # Before the client does, which would read a body without end to its end. httpx keeps what was read there.
    last, chunks, size = time.monotonic() + seconds, [], 0
    for chunk in response.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        wrong = ""
        if size > MOST_BYTES:
            wrong = f"the answer is longer than {MOST_BYTES} bytes"
        elif time.monotonic() > last:
            wrong = f"the answer has not arrived within {seconds:g} seconds"
        if wrong:
            raise openai.APIConnectionError(message=wrong, request=response.request)
    response._content = b"".join(chunks)
