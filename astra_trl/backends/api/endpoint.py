"""Settings of a model behind an OpenAI-compatible endpoint, given as `"openai:MODEL"` or as a mapping."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from astra_trl.backends.api.calls import MAX_RETRIES
from astra_trl.backends.api.extra_body import checked_extra_body
from astra_trl.backends.api.keys import checked_base_url
from astra_trl.backends.api.limits import Limits
from astra_trl.errors import InputError
from astra_trl.lookup import build

API_PREFIX = "openai:"
LIMITS = tuple(f.name for f in fields(Limits))
# What says how an endpoint is called, and not what it answers.
CALLING = (*LIMITS, "max_retries", "request_timeout")


@dataclass(frozen=True, kw_only=True)
class Endpoint(Limits):
    """A target behind an API.

    Args:
        model (`str`):
            Name of the model at the endpoint.
        base_url (`str`, *optional*):
            Address, e.g. `http://localhost:8000/v1`; defaults to OpenAI's own. The key is read from `$OPENAI_API_KEY`.
        api (`str`, *optional*, defaults to `"chat"`):
            `"chat"` sends messages, `"completions"` sends one text to continue.
        logprobs (`str`, *optional*, defaults to `"none"`):
            How the endpoint gives the likelihood of probes, with one more call per exchange: `"echo"` (completions) or
            `"vllm"` (`prompt_logprobs`). With `"none"` the baseline gives it.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts at a call after the first one, with exponential backoff.
        request_timeout (`float`, *optional*, defaults to `120`):
            Seconds in which an attempt must be answered completely.
        extra_body (`dict`, *optional*):
            Fields that are added to every request; `None` leaves one out, e.g. `{"seed": None}`.
        limits:
            Fields of [`Limits`], for all processes of a run together.
    """

    model: str
    base_url: str | None = None
    api: Literal["chat", "completions"] = "chat"
    logprobs: Literal["none", "echo", "vllm"] = "none"
    max_retries: int = MAX_RETRIES
    request_timeout: float = 120.0
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_base_url(self.base_url)
        checked_extra_body(self.extra_body)


def target_model(target: str | Mapping[str, Any]) -> str:
    """Return the model that a target's setting names, with its prefix if it is behind an API."""
    return target if isinstance(target, str) else str(target.get("model"))


def endpoint_of(target: str | Mapping[str, Any]) -> Endpoint | None:
    """Return the endpoint that a target's setting describes, or `None` if it is not behind an API.

    Raises:
        InputError: the setting has no model, or settings of an endpoint for a model that is not behind one.
    """
    settings = {"model": target} if isinstance(target, str) else dict(target)
    model = settings.get("model")
    if not isinstance(model, str) or model == API_PREFIX:
        raise InputError("the target names no model: give a Hub id, a folder or openai:MODEL")
    if model.startswith(API_PREFIX):
        return build("target", model, Endpoint, {**settings, "model": model.removeprefix(API_PREFIX)})
    if others := [key for key in settings if key != "model"]:
        names = ", ".join(others)
        raise InputError(f"{names} of target {model!r} is for models behind an API: give openai:MODEL, or drop it")
    return None


def is_behind_api(settings: Mapping[str, Any]) -> bool:
    """Return `True` if the settings of a scorer name a model behind an API."""
    return bool(settings.get("base_url")) or str(settings.get("model")).startswith(API_PREFIX)


def split_calling(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a scorer's settings into those of its class and those of the calls of its endpoint."""
    names = (*CALLING, "extra_body")
    calling = {key: value for key, value in settings.items() if key in names}
    return {key: value for key, value in settings.items() if key not in names}, calling
