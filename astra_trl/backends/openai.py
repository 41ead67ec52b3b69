"""A backend on any OpenAI-compatible chat endpoint: hosted models, vLLM, TGI, `transformers serve`."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from astra_trl.backends.base import Logprobs, Message, Sample, SamplingParams, SavedRow, derive_seed
from astra_trl.backends.thinking import without_thinking
from astra_trl.errors import InputError, MissingExtra

try:
    import openai
except ImportError as missing:
    raise MissingExtra(
        "an OpenAI-compatible endpoint needs the openai package: pip install 'astra-trl[api]'"
    ) from missing

KEY_VARIABLE = "OPENAI_API_KEY"


class OpenAIBackend:
    """Samples from a chat endpoint; gives no log-probabilities.

    The key is read from the environment variable `OPENAI_API_KEY` and appears nowhere else. A call that fails for good
    gives a `Sample` with an `error`; what no later call would mend (a refused key, an unknown model) is an
    `InputError`.

    Args:
        model (`str`):
            The endpoint's name of the model.
        base_url (`str`, *optional*):
            The endpoint, as `"http://localhost:8000/v1"`; OpenAI's own by default.
        sampling (`SamplingParams`, *optional*):
            `max_new_tokens`, `temperature`, `top_p` and `stop_strings` are sent.
        max_concurrency (`int`, *optional*, defaults to `8`):
            Calls at a time.
        max_retries (`int`, *optional*, defaults to `5`):
            Attempts after the first one, with growing pauses that honour Retry-After.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds after which an attempt has failed.
    """

    gives_logprobs = False
    chat = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        sampling: SamplingParams | None = None,
        max_concurrency: int = 8,
        max_retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        key = os.environ.get(KEY_VARIABLE)
        if not key and base_url is None:
            raise InputError(f"no key for {model!r}: set {KEY_VARIABLE}, or give the base_url of a server without one")
        self.model = model
        self.sampling = sampling or SamplingParams()
        self.max_concurrency = max_concurrency
        self._hosted = base_url is None
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=base_url, max_retries=max_retries, timeout=timeout
        )

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> "OpenAISession":
        rows: list[list[Message]] = [
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt) for prompt in prompts
        ]
        return OpenAISession(self, rows, list(seeds))

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> "OpenAISession":
        return OpenAISession(self, [list(row.state["messages"]) for row in rows], [row.state["seed"] for row in rows])

    def complete(self, messages: Sequence[Message], seed: int) -> Sample:
        """One answer to a chat; messages of one role in a row go over as one, as many templates refuse them."""
        sampling = self.sampling
        chat = [
            {"role": role, "content": "\n".join(message["content"] for message in group)}
            for role, group in groupby(messages, key=lambda message: message["role"])
        ]
        # OpenAI's newest models refuse the old name of the limit, and other servers do not know the new one.
        limit = "max_completion_tokens" if self._hosted else "max_tokens"
        wanted: dict[str, Any] = {limit: sampling.max_new_tokens, "temperature": sampling.temperature}
        wanted |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        wanted |= {"stop": list(sampling.stop_strings)} if sampling.stop_strings else {}
        try:
            answer = self._client.chat.completions.create(
                model=self.model,
                messages=chat,
                seed=seed % 2**31,
                **wanted,
            )
            text = answer.choices[0].message.content
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise InputError(
                f"{self._client.base_url} refuses model {self.model!r} (HTTP {error.status_code}): check the name, "
                f"the address and {KEY_VARIABLE}"
            ) from None  # its own text may quote the key
        except (openai.APIError, ValueError, IndexError, TypeError, AttributeError) as error:  # or no chat completion
            return Sample("", [], [], error=self._without_key(f"{type(error).__name__}: {error}"))
        if not isinstance(text, str):
            return Sample("", [], [], error=f"no text in the answer ({type(text).__name__})")
        return Sample(without_thinking(text), [], [])

    def _without_key(self, text: str) -> str:
        return text.replace(self._client.api_key, "***").strip().partition("\n")[0]


@dataclass
class OpenAISession:
    """The chats of an `OpenAIBackend`, one a row."""

    backend: OpenAIBackend
    rows: list[list[Message]]
    seeds: list[int]
    max_rows: None = None

    def branch(self, children: Sequence[tuple[int, int]]) -> "OpenAISession":
        rows = [list(self.rows[row]) for row, _ in children]
        return OpenAISession(self.backend, rows, [derive_seed(self.seeds[row], child) for row, child in children])

    def sample(self) -> list[Sample]:
        # The turn is part of the seed, as an endpoint starts from it anew at every call.
        seeds = [derive_seed(seed, len(row)) for seed, row in zip(self.seeds, self.rows, strict=True)]
        with ThreadPoolExecutor(self.backend.max_concurrency) as threads:
            samples = list(threads.map(self.backend.complete, self.rows, seeds))
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        for row, sample in zip(self.rows, samples, strict=True):
            row.append({"role": "assistant", "content": sample.text})

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        for row, text in zip(self.rows, texts, strict=True):
            row.append({"role": "user", "content": text})
        return None

    def saved(self) -> list[SavedRow]:
        rows = zip(self.rows, self.seeds, strict=True)
        return [SavedRow([], {"messages": [dict(message) for message in row], "seed": seed}) for row, seed in rows]
