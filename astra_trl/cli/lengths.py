"""Longest utterances of sides that are chats."""

from collections.abc import Mapping
from typing import Any

from astra_trl.backends.api.endpoint import API_PREFIX, target_model
from astra_trl.backends.base import CHAT_PROBE_TOKENS, CHAT_RESPONSE_TOKENS
from astra_trl.cli.config import EvaluateArguments, RunArguments
from astra_trl.lookup import is_dotted_path


def set_chat_lengths(args: RunArguments | EvaluateArguments, own: Mapping[str, Any]) -> None:
    """Set `max_new_tokens` of the sides that are chats, as [`chat_sampling`] does in Python.

    Args:
        args (`RunArguments` or `EvaluateArguments`):
            All settings, which are changed. If one of several targets is a chat, all get its length.
        own (`Mapping[str, Any]`):
            The settings that somebody has given, in place of defaults of the package or the system.
    """
    targets: list[Any] = args.target if isinstance(args.target, list) else [args.target]
    of_target, given_to_target = dict(_mapping(args.target_sampling)), _mapping(own.get("target_sampling"))
    has_default = "max_new_tokens" in of_target and "max_new_tokens" not in given_to_target  # the system's own
    given = "max_new_tokens" in own
    length = args.max_new_tokens
    if args.chat in ("tester", "both") and not given:
        args.max_new_tokens = CHAT_PROBE_TOKENS
    if any(_is_chat(args.chat, target) for target in targets):
        if "max_new_tokens" not in given_to_target and (has_default or not given):
            of_target["max_new_tokens"] = CHAT_RESPONSE_TOKENS
    elif args.max_new_tokens != length and not all(map(_is_function, targets)):
        of_target.setdefault("max_new_tokens", length)  # which followed the tester's
    args.target_sampling = of_target or args.target_sampling


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_function(target: Any) -> bool:
    return target is not None and is_dotted_path(target_model(target))


def _is_chat(chat: str, target: Any) -> bool:
    if target is not None and target_model(target).startswith(API_PREFIX):
        return _mapping(target).get("api", "chat") == "chat"
    return chat in ("target", "both") and not _is_function(target)
