"""Checks of openings before the first tree: chat templates that refuse them, and windows that they outgrow."""

import logging
import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from accelerate import PartialState

from astra_trl.backends.base import Prefix
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.dialogue import encode_all
from astra_trl.conversation import Opening, as_conversation, as_text
from astra_trl.errors import InputError
from astra_trl.systems.base import System

logger = logging.getLogger(__name__)

MAX_COUNTED = 2000  # openings whose tokens are counted; of more, the share in a part of them is taken


def check_openings(system: System, openings: Sequence[Opening], turns: int) -> Sequence[Opening]:
    """Return the openings. Raise `InputError` if the chat template of a side refuses one of them or what grows from
    it, and log how many are cut to the window of a side.

    Templates look at the roles and at the form of the texts, so one opening of each kind is rendered. Only openings
    that may be too long for a window are tokenised.
    """
    prepared = [system.prepare_opening(as_conversation(opening), seed) for seed, opening in enumerate(openings)]
    sides = {"tester": system.tester, "target": system.target, "baseline": system.baseline}
    done: list[tuple[Any, ...]] = []
    for side, backend in sides.items():
        if not isinstance(backend, HFBackend):
            continue
        prompt_of = system.target_prompt if side == "target" else system.tester_prompt
        # The baseline mostly is as the tester.
        template = backend.tokenizer.chat_template if backend.chat else None
        key = (side == "target", template, backend.system_prompt, backend.window, backend.sampling.max_new_tokens)
        if key not in done:
            done.append(key)
            _check_side(side, backend, [prompt_of(opening) for opening in prepared], openings, turns)
    return openings


def _check_side(
    side: str, backend: HFBackend, prompts: Sequence[Any], openings: Sequence[Opening], turns: int
) -> None:
    around: dict[tuple[Any, ...], int] = {}  # tokens beside those of the texts, by kind of prompt
    room = (backend.window or sys.maxsize) - backend.sampling.max_new_tokens
    long: list[tuple[list[str], int]] = []
    for index, prompt in enumerate(prompts):
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        roles = [isinstance(prompt, Prefix)] if isinstance(prompt, str) else [message["role"] for message in prompt]
        kind = (*roles, *((not text.strip(), text != text.strip(), "<" in text) for text in texts))
        if kind not in around:
            try:
                around[kind] = _tokens_around(backend, prompt, texts, side, turns)
            except InputError as error:
                text = " ".join(as_text(as_conversation(openings[index])).split())
                raise InputError(
                    f"opening {index + 1:,} of {len(prompts):,} ({text!r:.60}) does not fit the {side}: {error}; drop "
                    "such openings, or set another chat template"
                ) from error
        # No token is shorter than a byte.
        if sum(len(text.encode()) for text in texts) + around[kind] > room:
            long.append((texts, around[kind]))
    if not long:
        return
    step = math.ceil(len(long) / MAX_COUNTED)
    cut = min(len(long), step * sum(count > room for count in _counts(backend, long[::step])))
    if cut and PartialState().is_main_process:
        count = f"about {cut:,}" if step > 1 else f"{cut:,}"
        _warn_once(
            f"{count} of {len(prompts):,} openings are longer than the {room:,} tokens that the {side}'s window of "
            f"{backend.window:,} leaves them: it sees only their newest tokens (max_length, max_new_tokens)"
        )


def _tokens_around(backend: HFBackend, prompt: Any, texts: Sequence[str], side: str, turns: int) -> int:
    (row,) = backend.dialogue.open([prompt])
    grown = row
    for turn in range(min(turns, 2)):
        if side == "target" or turn:  # the tester speaks first
            ((grown, _, _),) = backend.dialogue.append_other([grown], ["a"])
        grown = backend.dialogue.append_own(grown, [], "a")
    return len(row.ids) - _counts(backend, [(list(texts), 0)])[0]


def _counts(backend: HFBackend, prompts: Sequence[tuple[list[str], int]]) -> list[int]:
    encoded = iter(encode_all(backend.tokenizer, [text for texts, _ in prompts for text in texts]))
    return [around + sum(len(next(encoded)) for _ in texts) for texts, around in prompts]


@lru_cache
def _warn_once(text: str) -> None:
    logger.warning(text)
