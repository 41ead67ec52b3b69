"""Settings of an evaluation: everything that its figures depend on, as JSON."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from astra_trl.conversation import Opening, as_conversation, as_messages
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import System

PACKAGES = ("astra-trl", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "detoxify", "sacrebleu")


def evaluation_settings(given: System, examined: System, openings: Sequence[Opening], **own: Any) -> dict[str, Any]:
    """Return the settings of an evaluation that has `own` ones.

    Args:
        given (`System`):
            The system that is evaluated.
        examined (`System`):
            The same with all scorers, and with the terms of the reward that can be compared.
        openings (`Sequence[Opening]`):
            The held-out openings.
    """
    messages = [as_messages(as_conversation(opening)) for opening in openings]
    return {
        "system": type(given).__name__,
        "system_label": given.label,
        "system_paper": given.paper,
        "openings": len(openings),
        "openings_digest": hashlib.blake2b(json.dumps(messages).encode(), digest_size=8).hexdigest(),
        **own,
        "harm": given.harm,
        "scorers": list(examined.scorers),
        "scorer_settings": {name: _scorer_settings(scorer) for name, scorer in examined.scorers.items()},
        "reward": {name: weight for name, (weight, _) in examined.reward.terms.items()},
        "reward_left_out": [name for name in given.reward.terms if name not in examined.reward.terms],
        "goals": [goal.name for goal in given.goals],
        "versions": dict(_versions()),
    }


def _scorer_settings(scorer: Scorer) -> dict[str, Any]:
    # The public attributes with plain values, which tell e.g. two word lists apart.
    settings = {"kind": getattr(scorer, "__name__", type(scorer).__name__)}
    for key, value in getattr(scorer, "__dict__", {}).items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not key.startswith("_") and all(isinstance(part, str | int | float | None) for part in parts):
            settings[key] = list(value) if isinstance(value, list | tuple) else value
    return settings


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            yield package, version(package)
