"""A backend on any OpenAI-compatible endpoint: hosted models, vLLM, TGI, `transformers serve`."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from astra_trl.backends.api.calls import MAX_RETRIES, Answer, Caller, CallFailed, retry_after
from astra_trl.backends.api.completions import Request, read_answer, read_error
from astra_trl.backends.api.keys import KEY_VARIABLE, URL_VARIABLE, Key, checked_base_url
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat, whole_characters
from astra_trl.backends.api.prompt_logprobs import NoLogprobs, PromptLogprobs, PromptReader
from astra_trl.backends.api.response_cache import ResponseCache
from astra_trl.backends.base import SamplingParams
from astra_trl.errors import BudgetSpent, InputError, MissingExtra
from astra_trl.text import parse_json

try:
    import openai
except ImportError as missing:
    raise MissingExtra(
        "an OpenAI-compatible endpoint needs the openai package: pip install 'astra-trl[api]'"
    ) from missing

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 32  # far above any text: it cuts the answers of endpoints that ignore max_new_tokens
MAX_BYTES = 2**26  # of a response body; log-probabilities of a long conversation take some megabytes
UNSENT = ("min_new_tokens", "top_k", "repetition_penalty")  # fields of the sampling that OpenAI's API does not have
TRANSIENT = (408, 409, 429)  # statuses that are retried, as are those from 500
PERMANENT = (401, 403, 404)  # statuses that no later call would avoid


class OpenAIBackend(MessagesBackend):
    """Samples from an endpoint, by chat completions or plain completions.

    The key is read from the environment variable `OPENAI_API_KEY` and appears nowhere else.

    Failed connections, timeouts, the statuses 408, 409, 429 and 5xx, and bodies that are not a completion are retried
    with exponential backoff up to 30 seconds, or after the time that Retry-After asks for; by default a server can be
    away for 75 seconds. A call that fails for good gives a `Sample` with an `error`. Failures that no later call would
    avoid (an invalid key, an unknown model, a refused request before the first answer) raise `InputError`. An answer
    that a content filter withholds is empty: it is neither harmful nor harmless and has no reward.

    Args:
        model (`str`):
            The endpoint's name of the model.
        base_url (`str`, *optional*):
            The endpoint, e.g. `"http://localhost:8000/v1"`; defaults to `OPENAI_BASE_URL`, or to OpenAI's own.
        chat (`bool`, *optional*, defaults to `True`):
            Whether to send messages. Otherwise one text is sent, which the model continues, each utterance followed by
            a line break, as in [`HFBackend`].
        sampling (`SamplingParams`, *optional*):
            `max_new_tokens`, `temperature`, `top_p` and `stop_strings` are sent. If other fields are set, a warning
            says that they are not sent, unless `extra_body` has them.
        prompt_logprobs (`str`, *optional*, defaults to `"none"`):
            The way in which the endpoint returns log-probabilities of prompts, by one more call per exchange: `"echo"`
            (plain completions with `echo` and `logprobs`) or `"vllm"` (the field `prompt_logprobs`). An endpoint that
            returns none raises `InputError` at the first call.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts after the first one.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds without a response after which an attempt fails, and seconds that a response may take to arrive.
        max_characters (`int`, *optional*):
            Length at which longer answers are cut; defaults to 32 for each of `max_new_tokens`.
        response_cache (`str`, *optional*):
            A folder for answers: an equal request is not made again.
        extra_body (`Mapping[str, Any]`, *optional*):
            More fields of every request, e.g. vLLM's `{"repetition_penalty": 1.1}`.
        limiter (`Limiter`, *optional*):
            A rate limiter shared with another backend.
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
        self._prompt_reader = PromptReader(prompt_logprobs, chat)
        self._extra_body = dict(extra_body or {})
        default = SamplingParams()
        unsent = [n for n in UNSENT if getattr(sampling, n) != getattr(default, n) and n not in self._extra_body]
        if unsent:
            logger.warning("%s of %r: endpoints have no such field, so it is not sent", ", ".join(unsent), model)
        self._cache = None if response_cache is None else ResponseCache(response_cache)
        self._has_answered = False
        # OpenAI's newest models refuse the old name of the limit, and other servers do not know the new one.
        self._limit = "max_completion_tokens" if base_url is None and chat else "max_tokens"
        self._client = openai.OpenAI(
            api_key=self._key.reveal() or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultHttpxClient(
                event_hooks={"response": [partial(_read_body, seconds=timeout)]},
                follow_redirects=False,  # conversations and the key go to the address that was given
            ),
        )
        endpoint = self._client.chat.completions if chat else self._client.completions
        self._create = endpoint.with_raw_response.create
        self.address = str(self._client.base_url).rstrip("/")

    @property
    def description(self) -> dict[str, Any]:
        """JSON that identifies the model, without the key."""
        # The name of the model can be a path, whose folders are private.
        name = "/".join(PurePath(self.model).parts[-2:]) if PurePath(self.model).is_absolute() else self.model
        return {
            "backend": "OpenAIBackend",
            "model": name,
            "host": urlsplit(self.address).netloc,
            "api": "chat completions" if self.chat else "completions",
            "sampling": asdict(self.sampling),
        }

    def redact(self, text: str) -> str:
        return self._key.redact(text)

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        read = partial(read_answer, chat=self.chat)
        return self._answers([Request(self._body(row.messages, row.turn_seed), read) for row in rows])

    def ask_logprobs(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Answer]:
        reader = self._prompt_reader
        if reader.tail is None:
            (answer,) = self._answers([reader.tail_request(self._body)])
            if answer.error is not None:
                return [answer] * len(rows)
            reader.tail = answer.text
        requests = [
            reader.request(partial(self._body, seed=row.turn_seed), row.messages, text)
            for row, text in zip(rows, texts, strict=True)
            if text
        ]
        answers = iter(self._answers(requests))
        return [next(answers) if text else Answer() for text in texts]

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int = 0) -> dict[str, Any]:
        sampling = self.sampling
        body: dict[str, Any] = {"model": self.model}
        if self.chat:
            body["messages"] = as_chat(messages)
        else:
            body["prompt"] = whole_characters("".join(message["content"] for message in messages))
        body |= {"seed": seed % 2**31, self._limit: sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop_strings:
            body["stop"] = list(sampling.stop_strings)
        return {**body, **self._extra_body}

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        cached: list[Answer | None] = [None] * len(requests)
        if self._cache is not None:
            requests = [replace(request, key=self._cache.key(self.address, request.body)) for request in requests]
            cached = [self._cache.get(request.key) for request in requests]
        new = [[request] for request, answer in zip(requests, cached, strict=True) if answer is None]
        answers = iter(self.caller.each(self._attempt, new, [request.estimated_tokens for (request,) in new]))
        return [next(answers) if answer is None else answer for answer in cached]

    def _attempt(self, requests: Sequence[Request]) -> list[Answer]:
        (request,) = requests
        answer = self._send(request)
        self._has_answered = True
        if self._cache is not None:
            answer = replace(answer, text=self.redact(answer.text))
            self._cache.put(request.key, answer)
        return [answer]

    def _send(self, request: Request) -> Answer:
        refusal, failure = None, ""
        # The client insists on these; it sends all other fields as they are.
        required = {name: request.body[name] for name in ("model", "messages", "prompt") if name in request.body}
        try:
            response = self._create(extra_body=dict(request.body), **required)
        except openai.APIStatusError as error:
            refusal, failure = error.response, f"{type(error).__name__}: {error}"
        except openai.APIError as error:  # the connection failed
            failure = f"{type(error).__name__}: {error} {error.__cause__ or ''}"
        # Outside the except clauses: errors of the client hold the request, and the request holds the key.
        if refusal is not None:
            return self._refuse(refusal, self._key.redact_reason(failure))
        if failure:
            raise CallFailed(self._key.redact_reason(failure))
        try:
            return request.read(response.content)
        except NoLogprobs as error:
            reason = self._key.redact_reason(error.reason)
        except CallFailed as error:
            raise CallFailed(self._key.redact_reason(error.reason), error.again) from None
        raise InputError(
            f"{self.address} gives no log-probabilities of prompts in the way that was asked for: choose another "
            f"prompt_logprobs, or 'none' ({reason})"
        )

    def _refuse(self, response: Any, reason: str) -> Answer:
        """Raise the error for a status that is not a success; return an empty answer for a content filter."""
        status = response.status_code
        try:
            code, _ = read_error(parse_json(response.content))
        except ValueError:
            code = ""
        if status == 400 and code == "content_filter":
            return Answer(filtered=True)
        if code == "insufficient_quota":
            raise BudgetSpent(f"{self.address} gives no more to this key: {reason}")
        if status in TRANSIENT or status >= 500:
            raise CallFailed(reason, after=retry_after(response.headers, time.time()))
        if 300 <= status < 400:
            where = self._key.redact_reason(response.headers.get("location", "another address").partition("?")[0])
            raise InputError(
                f"{self.address} redirects to {where}, which is not followed: if you trust it, give its address as "
                "the base_url"
            )
        if status in PERMANENT:
            raise InputError(
                f"{self.address} refuses model {self.model!r} (HTTP {status}): check the name, the address and "
                f"{KEY_VARIABLE} ({reason})"
            )
        if not self._has_answered and code != "context_length_exceeded":
            raise InputError(
                f"{self.address} refuses the request (HTTP {status}): check the sampling of the target, and "
                f"extra_body ({reason})"
            )
        raise CallFailed(reason, again=False)  # other requests were answered, so this conversation is the cause


def _read_body(response: Any, seconds: float) -> None:
    # Before the client does, which would read a body without end. httpx keeps the content that is set here.
    end, chunks, size = time.monotonic() + seconds, [], 0
    for chunk in response.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        reason = ""
        if size > MAX_BYTES:
            reason = f"the answer is longer than {MAX_BYTES} bytes"
        elif time.monotonic() > end:
            reason = f"the answer has not arrived within {seconds:g} seconds"
        if reason:
            raise openai.APIConnectionError(message=reason, request=response.request)
    response._content = b"".join(chunks)
