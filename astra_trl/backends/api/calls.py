"""Concurrent calls within limits, with retries and exponential backoff."""

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

MAX_RETRIES = 10  # they take 75 to 150 seconds, in which a server can be restarted
FIRST_PAUSE, MAX_PAUSE = 0.5, 30.0  # seconds
MAX_RETRY_AFTER = 600.0  # seconds that a server can ask for
RETRIES_BEFORE_WARNING = 3

_jitter = random.Random()  # its own state, so that seeds of the global one stay valid


@dataclass(frozen=True)
class Answer:
    """The result of a call.

    Args:
        text (`str`):
            The utterance.
        error (`str`, *optional*):
            The reason why there is no utterance.
        filtered (`bool`, *optional*, defaults to `False`):
            Whether a content filter withheld the utterance.
        logprobs (`tuple[float, ...]`, *optional*):
            Log-probabilities of the tokens that were asked about.
        prompt_tokens, completion_tokens (`int`, *optional*):
            The endpoint's own counts.
    """

    text: str = ""
    error: str | None = None
    filtered: bool = False
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class CallFailed(Exception):
    """A failed attempt.

    Args:
        reason (`str`):
            The reason in one line, without secrets.
        again (`bool`, *optional*, defaults to `True`):
            Whether to retry.
        after (`float`, *optional*):
            Seconds to wait before that.
    """

    def __init__(self, reason: str, again: bool = True, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.after = reason, again, after


class Stopped(Exception):
    """Another call of the same batch has stopped all calls."""


Attempt = Callable[[Sequence[T]], Sequence[Answer]]


@dataclass
class Caller:
    """Makes concurrent calls with retries.

    Args:
        limiter (`Limiter`):
            Rate limiter and counter.
        max_retries (`int`, *optional*, defaults to `10`):
            Attempts after the first one.
        sleep (`Callable[[float], None]`, *optional*):
            Sleeps for some seconds; by default until then, or until a call stops all calls.
    """

    limiter: Limiter
    max_retries: int = MAX_RETRIES
    sleep: Pause | None = None

    def each(self, attempt: Attempt[T], groups: Sequence[Sequence[T]], tokens: Sequence[int]) -> list[Answer]:
        """Return the answers to all calls, in their order.

        Args:
            attempt (`Callable[[Sequence[T]], Sequence[Answer]]`):
                Makes one attempt at the calls of one group. Raises `CallFailed`; any other error stops all calls.
            groups (`Sequence[Sequence[T]]`):
                Calls that one request makes.
            tokens (`Sequence[int]`):
                An estimate for each group.
        """
        stop, errors = threading.Event(), []  # the first error is the cause, later ones follow from it

        def pause(seconds: float) -> None:
            if self.sleep is not None:
                self.sleep(seconds)
            else:
                stop.wait(seconds)
            if stop.is_set():
                raise Stopped

        def call(group: Sequence[T], estimate: int) -> Sequence[Answer]:
            if stop.is_set():
                raise Stopped
            try:
                return self._call(attempt, group, estimate, pause)
            except BaseException as error:
                errors.append(error)
                stop.set()
                raise

        if not groups:
            return []
        threads = ThreadPoolExecutor(min(self.limiter.limits.max_concurrency, len(groups)))
        try:
            futures = [threads.submit(call, group, estimate) for group, estimate in zip(groups, tokens, strict=True)]
            wait(futures, return_when=FIRST_EXCEPTION)
            if errors:
                raise errors[0]
            return [answer for future in futures for answer in future.result()]
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, attempt: Attempt[T], group: Sequence[T], tokens: int, pause: Pause) -> Sequence[Answer]:
        for retry in count():
            try:
                answers = self._attempt(attempt, group, tokens, pause)
            except CallFailed as failure:
                if failure.again and retry < self.max_retries:
                    if retry == RETRIES_BEFORE_WARNING:
                        logger.warning("a call has failed %d times and is retried: %s", retry + 1, failure.reason)
                    pause(pause_before(retry, failure.after))
                    continue
                answers = [Answer(error=failure.reason)] * len(group)
            break
        errors = [answer.error for answer in answers if answer.error is not None]
        self.limiter.count_calls(len(answers), len(errors), errors[-1] if errors else None)
        return answers

    def _attempt(self, attempt: Attempt[T], group: Sequence[T], tokens: int, pause: Pause) -> Sequence[Answer]:
        request = self.limiter.reserve(tokens, pause)
        used = (0, 0)
        try:
            answers = attempt(group)
            prompt = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
            # Without a count of the endpoint, the estimate counts.
            used = (sum(prompt) if prompt else tokens, sum(answer.completion_tokens or 0 for answer in answers))
            return answers
        finally:
            self.limiter.settle(request, *used)


def pause_before(retry: int, after: float | None = None) -> float:
    """Return the seconds before a retry (the first is 0): `after`, or exponential backoff, both with jitter."""
    if after is not None:
        return min(after, MAX_RETRY_AFTER) * _jitter.uniform(1.0, 1.1)
    return min(FIRST_PAUSE * 2**retry, MAX_PAUSE) * _jitter.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, Any], now: float) -> float | None:
    """Return the seconds that a response's headers ask to wait: in milliseconds, in seconds or by date.

    Args:
        now (`float`):
            Seconds since 1970.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if seconds == seconds:  # "nan" is a float
            return max(0.0, seconds)
    return None
