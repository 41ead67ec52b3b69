"""A backend on any OpenAI-compatible endpoint: hosted models, vLLM, TGI, `transformers serve`."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from astra_trl.backends.api.calls import MAX_RETRIES, Answer, Caller, CallFailed, retry_after
from astra_trl.backends.api.completions import Request, read_answer, read_error, read_refusal, wrong_form
from astra_trl.backends.api.connection import explain, read_limited, run
from astra_trl.backends.api.extra_body import advise, change_body, checked_extra_body
from astra_trl.backends.api.keys import KEY_VARIABLE, URL_VARIABLE, Key, checked_base_url
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat, whole_characters
from astra_trl.backends.api.prompt_logprobs import NoLogprobs, PromptLogprobs, PromptReader
from astra_trl.backends.api.response_cache import ResponseCache
from astra_trl.backends.base import CHAT_RESPONSE_TOKENS, SamplingParams
from astra_trl.errors import BudgetSpent, InputError, MissingExtra
from astra_trl.numbers import require_numbers

try:
    import openai
except ImportError as missing:
    raise MissingExtra(
        "an OpenAI-compatible endpoint needs the openai package: pip install 'astra-trl[api]'"
    ) from missing

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 32  # far above any text: it cuts the answers of endpoints that ignore max_new_tokens
UNSENT = ("min_new_tokens", "top_k", "repetition_penalty")  # fields of the sampling that OpenAI's API does not have
TRANSIENT = (408, 409, 429)  # statuses that are retried, as are those from 500
PERMANENT = (401, 403, 404, 405, 501)  # statuses that no later call would avoid
CONNECT_TIMEOUT = 20.0  # seconds


class OpenAIBackend(MessagesBackend):
    """Samples from an endpoint, by chat completions or plain completions.

    The key is read from the environment variable `OPENAI_API_KEY` and appears nowhere else.

    Failed connections, timeouts, the statuses 408, 409, 429 and 5xx, and bodies that are not a completion are retried
    with exponential backoff up to 30 seconds, or after the time that Retry-After asks for; by default a server can be
    away for 75 seconds. A call that fails for good gives a `Sample` with an `error`. Failures that no later call would
    avoid (an invalid key, an unknown model, and before the first answer no server, a web page or a refused request)
    raise `InputError`. An answer that a content filter withholds is empty: it is neither harmful nor harmless and has
    no reward.

    Args:
        model (`str`):
            The endpoint's name of the model.
        base_url (`str`, *optional*):
            The endpoint, e.g. `"http://localhost:8000/v1"`; defaults to `OPENAI_BASE_URL`, or to OpenAI's own.
        chat (`bool`, *optional*, defaults to `True`):
            Whether to send messages. Otherwise one text is sent, which the model continues, each utterance followed by
            a line break, as in [`HFBackend`].
        sampling (`SamplingParams`, *optional*):
            `max_new_tokens` (by default 128 in a chat, else 24), `temperature`, `top_p` and `stop_strings` are sent.
            If other fields are set, a warning says that they are not sent, unless `extra_body` has them.
        prompt_logprobs (`str`, *optional*, defaults to `"none"`):
            The way in which the endpoint returns log-probabilities of prompts, by one more call per exchange: `"echo"`
            (plain completions with `echo` and `logprobs`) or `"vllm"` (the field `prompt_logprobs`). An endpoint that
            returns none raises `InputError` at the first call.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts after the first one.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds in which an attempt must be answered completely, whatever arrives meanwhile.
        max_characters (`int`, *optional*):
            Length at which longer answers are cut; defaults to 32 for each of `max_new_tokens`.
        response_cache (`str`, *optional*):
            A folder for answers: an equal request is not made again.
        extra_body (`Mapping[str, Any]`, *optional*):
            More fields of every request, e.g. vLLM's `{"repetition_penalty": 1.1}`. `None` leaves a field out, e.g.
            `{"seed": None}`; `{"max_tokens": None, "max_completion_tokens": 64}` sends a limit under another name.
        role (`str`, *optional*, defaults to `"target"`):
            Role of the model, for messages.
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
        role: str = "target",
        limiter: Limiter | None = None,
        **limits: Any,
    ) -> None:
        base_url = checked_base_url(base_url or os.environ.get(URL_VARIABLE) or None)
        self._key = Key()
        if not self._key and base_url is None:
            raise InputError(f"no key for {model!r}: set {KEY_VARIABLE}, or give the base_url of a server without one")
        require_numbers(timeout=timeout, max_retries=max_retries)
        if sampling is None:
            sampling = SamplingParams(max_new_tokens=CHAT_RESPONSE_TOKENS) if chat else SamplingParams()
        super().__init__(
            Caller(limiter or Limiter(Limits(**limits)), max_retries, name=f"{role} {model!r}"),
            sampling,
            CHARACTERS_PER_TOKEN * sampling.max_new_tokens if max_characters is None else max_characters,
        )
        self.model = model
        self.chat = chat
        self.gives_logprobs = prompt_logprobs != "none"
        self._prompt_reader = PromptReader(prompt_logprobs, chat)
        self._extra_body = checked_extra_body(extra_body)
        self._role = role
        self._timeout = timeout
        default = SamplingParams()
        unsent = [n for n in UNSENT if getattr(sampling, n) != getattr(default, n) and n not in self._extra_body]
        if unsent:
            logger.warning("%s of %r: endpoints have no such field, so it is not sent", ", ".join(unsent), model)
        self._cache = None if response_cache is None else ResponseCache(response_cache)
        self._is_reached = self._has_answered = False
        # OpenAI's newest models refuse the old name of the limit, and other servers do not know the new one.
        self._limit = "max_completion_tokens" if base_url is None and chat else "max_tokens"
        self._client = openai.AsyncOpenAI(
            api_key=self._key.reveal() or "none",
            base_url=base_url,
            max_retries=0,
            timeout=openai.Timeout(None, connect=min(timeout, CONNECT_TIMEOUT)),  # the rest is the deadline of `run`
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [read_limited]},
                follow_redirects=False,  # conversations and the key go to the address that was given
            ),
        )
        endpoint = self._client.chat.completions if chat else self._client.completions
        self._create = endpoint.with_raw_response.create
        self.address = str(self._client.base_url).rstrip("/")
        self.caller.name += f" at {self.address}"

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
            **({"extra_body": self._extra_body} if self._extra_body else {}),
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
        return change_body(body, self._extra_body)

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
        refusal, data, failure, cause, lost = None, None, "", "", False
        # The client insists on these; it sends all other fields as they are.
        required = {name: request.body[name] for name in ("model", "messages", "prompt") if name in request.body}
        try:
            response = run(self._create(extra_body=dict(request.body), **required), self._timeout)
        except asyncio.TimeoutError:
            failure = f"not answered completely within {self._timeout:g} seconds"
        except openai.APIStatusError as error:
            refusal, data = error.response, read_refusal(error.response.content)
            failure = f"{type(error).__name__}: Error code: {refusal.status_code} - {read_error(data)[1]}"
        except openai.APIError as error:  # the connection failed
            cause, lost = explain(error)
            failure = f"{type(error).__name__}: {error} {cause}"
        # Outside the except clauses: errors of the client hold the request, and the request holds the key.
        failure = self._key.redact_reason(failure)
        if lost and not self._is_reached:  # a server that was there before is waited for
            cause = self._key.redact_reason(cause)
            raise InputError(f"{self.address} cannot be reached ({cause}): check the base_url of the {self._role}")
        self._is_reached = self._is_reached or refusal is not None or not failure
        if refusal is not None:
            return self._refuse(refusal, data, request, failure)
        if failure:
            raise CallFailed(failure)
        try:
            return request.read(response.content)
        except NoLogprobs as error:
            reason = self._key.redact_reason(error.reason)
        except CallFailed as error:
            if not self._has_answered and (form := wrong_form(response.content)):
                raise InputError(
                    f"{self.address} answers with {form}: check the base_url of the {self._role}{self._hint}"
                ) from None
            raise CallFailed(self._key.redact_reason(error.reason), error.again) from None
        raise InputError(
            f"{self.address} gives no log-probabilities of prompts in the way that was asked for: choose another "
            f"prompt_logprobs, or 'none' ({reason})"
        )

    def _refuse(self, response: Any, data: Any, request: Request, reason: str) -> Answer:
        """Raise the error for a status that is not a success; return an empty answer for a content filter."""
        status = response.status_code
        code, _ = read_error(data)
        if status == 400 and code == "content_filter":
            return Answer(filtered=True)
        if code == "insufficient_quota":
            raise BudgetSpent(f"{self.address} gives no more to this key: {reason}")
        if 300 <= status < 400:
            where = self._key.redact_reason(response.headers.get("location", "another address").partition("?")[0])
            raise InputError(
                f"{self.address} redirects to {where}, which is not followed: if you trust it, give its address as "
                "the base_url"
            )
        if status in PERMANENT:
            raise InputError(
                f"{self.address} refuses model {self.model!r} (HTTP {status}): check the name, the address{self._hint}"
                f" and {KEY_VARIABLE} ({reason})"
            )
        if status == 402:
            raise BudgetSpent(f"{self.address} wants a payment (HTTP 402), check the account's credit: {reason}")
        if status in TRANSIENT or status >= 500:
            raise CallFailed(reason, after=retry_after(response.headers, time.time()))
        if not self._has_answered and code != "context_length_exceeded":
            advice = advise(data, request.body)
            fix = f"add {advice} to" if advice else "check the sampling and extra_body of"
            raise InputError(f"{self.address} refuses the request (HTTP {status}): {fix} the {self._role} ({reason})")
        raise CallFailed(reason, again=False)  # other requests were answered, so this conversation is the cause

    @property
    def _hint(self) -> str:
        return "" if re.search(r"/v\d", self.address) else " (most end in /v1)"
