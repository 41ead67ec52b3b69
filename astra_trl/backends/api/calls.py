"""Calls that may fail: several at a time within limits, tried again after growing pauses, given up at last."""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, TypeVar

from astra_trl.backends.api.limits import Limiter, Pause

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RETRIES = 10  # which take 75 to 150 seconds: a server may be started again meanwhile
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
LONGEST_WAIT = 600.0  # seconds that a server may ask for
WARN_AT = 3  # retries: not at every hiccup

_jitter = random.Random()  # not the state that others seed


@dataclass(frozen=True)
class Answer:
    """What a call came to.

    Args:
        text (`str`):
            What was said.
        error (`str`, *optional*):
            Why nothing was.
        filtered (`bool`, *optional*, defaults to `False`):
            Whether a content filter has kept back what was said.
        logprobs (`list[float]`, *optional*):
            Of the tokens that were asked about.
        prompt_tokens, completion_tokens (`int`, *optional*):
            As they were counted elsewhere.
    """

    text: str = ""
    error: str | None = None
    filtered: bool = False
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class CallFailed(Exception):
    """An attempt that failed.

    Args:
        reason (`str`):
            Why, in one line that anybody may read.
        again (`bool`, *optional*, defaults to `True`):
            Whether another attempt may do better.
        after (`float`, *optional*):
            Seconds that are to pass before it.
    """

    def __init__(self, reason: str, again: bool = True, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.after = reason, again, after


class Stopped(Exception):
    """Another call of the same batch has stopped them all."""


@dataclass
class Caller:
    """Makes calls.

    Args:
        limiter (`Limiter`):
            Lets requests through and counts them.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts after the first one.
        sleep (`Callable[[float], None]`, *optional*):
            Passes seconds; by default in a way that ends at once when a call stops them all.
    """

    limiter: Limiter
    max_retries: int = MAX_RETRIES
    sleep: Pause | None = None

    def each(
        self, attempt: Callable[[Sequence[T]], Sequence[Answer]], groups: Sequence[Sequence[T]], tokens: Sequence[int]
    ) -> list[Answer]:
        """The answers to all calls, in their order.

        Args:
            attempt (`Callable[[Sequence[T]], Sequence[Answer]]`):
                Makes an attempt at the calls of one group. Raises `CallFailed`; whatever else it raises ends them all.
            groups (`Sequence[Sequence[T]]`):
                Calls that are made by one request.
            tokens (`Sequence[int]`):
                About how many each group will take.
        """
        stop, reasons = threading.Event(), []  # why all calls are to end: the first reason is the one

        def pause(seconds: float) -> None:
            if self.sleep is not None:
                self.sleep(seconds)
            else:
                stop.wait(seconds)
            if stop.is_set():
                raise Stopped

        def call(group: Sequence[T], about: int) -> Sequence[Answer]:
            if stop.is_set():
                raise Stopped
            try:
                return self._call(attempt, group, about, pause)
            except BaseException as error:
                reasons.append(error)
                stop.set()
                raise

        if not groups:
            return []
        threads = ThreadPoolExecutor(min(self.limiter.limits.max_concurrency, len(groups)))
        try:
            calls = [threads.submit(call, group, about) for group, about in zip(groups, tokens, strict=True)]
            wait(calls, return_when=FIRST_EXCEPTION)
            if reasons:
                raise reasons[0]
            return [answer for ended in calls for answer in ended.result()]
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)

    def _call(
        self, attempt: Callable[[Sequence[T]], Sequence[Answer]], group: Sequence[T], tokens: int, pause: Pause
    ) -> Sequence[Answer]:
        for retry in count():
            try:
                answers = self._attempt(attempt, group, tokens, pause)
            except CallFailed as failure:
                if failure.again and retry < self.max_retries:
                    if retry == WARN_AT:
                        logger.warning("a call has failed %d times and is tried on: %s", retry + 1, failure.reason)
                    pause(pause_before(retry, failure.after))
                    continue
                answers = [Answer(error=failure.reason)] * len(group)
            break
        errors = [answer.error for answer in answers if answer.error is not None]
        self.limiter.ended(len(answers), len(errors), errors[-1] if errors else None)
        return answers

    def _attempt(
        self, attempt: Callable[[Sequence[T]], Sequence[Answer]], group: Sequence[T], tokens: int, pause: Pause
    ) -> Sequence[Answer]:
        request = self.limiter.reserve(tokens, pause)
        took = (0, 0)
        try:
            answers = attempt(group)
            prompt = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
            # Where the other side has not counted, what was reserved.
            took = (sum(prompt) if prompt else tokens, sum(answer.completion_tokens or 0 for answer in answers))
            return answers
        finally:
            self.limiter.settle(request, *took)


def pause_before(retry: int, after: float | None = None) -> float:
    """Seconds before a retry (the first is 0): those that were asked for, or twice as many as before; never the same
    for all, as they would come all at once."""
    if after is not None:
        return min(after, LONGEST_WAIT) * _jitter.uniform(1.0, 1.1)
    return min(FIRST_PAUSE * 2**retry, LONGEST_PAUSE) * _jitter.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, Any], now: float) -> float | None:
    """Seconds to wait, as a response's headers ask for them: in milliseconds, seconds or by the date.

    Args:
        now (`float`):
            Seconds since 1970.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = headers.get(name)
        if given is None:
            continue
        try:
            seconds = float(given) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(given).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if seconds == seconds:  # "nan" is a float
            return max(0.0, seconds)
    return None
