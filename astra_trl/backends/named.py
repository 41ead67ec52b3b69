"""An endpoint as the target, as `--target openai:MODEL` and the flags beside it give it."""

from dataclasses import dataclass, field, fields
from typing import Any

from astra_trl.backends.api.calls import MAX_RETRIES
from astra_trl.backends.api.keys import checked_base_url
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.errors import InputError

PREFIX = "openai:"


@dataclass
class ApiArguments:
    """Where a target behind an API is, and what may be asked of it and of a judge behind one; the key is in the
    environment alone."""

    target_base_url: str | None = field(
        default=None,
        metadata={
            "help": "OpenAI-compatible endpoint of the target, as http://localhost:8000/v1. Its key is read from the "
            "variable OPENAI_API_KEY. Default: OpenAI's own."
        },
    )
    target_api: str = field(
        default="chat",
        metadata={
            "help": "Whether it gets messages, or one text to continue.",
            "choices": ["chat", "completions"],
        },
    )
    target_logprobs: str = field(
        default="none",
        metadata={
            "help": "How it tells the likelihood of probes, by a call more an exchange: 'echo' (completions), 'vllm' "
            "(prompt_logprobs). With 'none' the baseline tells it.",
            "choices": ["none", "echo", "vllm"],
        },
    )
    max_concurrency: int = field(default=8, metadata={"help": "Calls at a time, over all processes."})
    requests_per_minute: int | None = field(default=None, metadata={"help": "Requests in any 60 seconds."})
    tokens_per_minute: int | None = field(default=None, metadata={"help": "Tokens in any 60 seconds."})
    max_requests: int | None = field(default=None, metadata={"help": "Requests in all; then the run stops."})
    max_total_tokens: int | None = field(default=None, metadata={"help": "Tokens in all; then the run stops."})
    max_retries: int = field(default=MAX_RETRIES, metadata={"help": "Attempts at a call after the first one."})
    request_timeout: float = field(default=120.0, metadata={"help": "Seconds after which an attempt has failed."})
    max_failed_share: float = field(
        default=0.05, metadata={"help": "Share of calls that may fail for good; then the run stops."}
    )

    def __post_init__(self) -> None:
        checked_base_url(self.target_base_url)

    @property
    def limits(self) -> Limits:
        """What all processes together may take."""
        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})

    def calling(self, limiter: Limiter) -> dict[str, Any]:
        """How an endpoint is called, for an [`OpenAIBackend`]."""
        return {"max_retries": self.max_retries, "timeout": self.request_timeout, "limiter": limiter}


API_FLAGS = [f.name for f in fields(ApiArguments)]


def api_model(target: str) -> str | None:
    """The model that an endpoint is asked for; `None` where the target is none behind an API."""
    if not target.startswith(PREFIX):
        return None
    if target == PREFIX:
        raise InputError("--target openai: names no model: give openai:MODEL")
    return target.removeprefix(PREFIX)


def refuse_idle_address(args: ApiArguments, *targets: str) -> None:
    """`InputError` where an address is given and no target that could be there."""
    if args.target_base_url is not None and all(api_model(target) is None for target in targets):
        raise InputError(f"--target_base_url is given and no target behind an API: give --target {PREFIX}MODEL")
