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
    """The result of a call."""

    text: str = ""
    error: str | None = None  # the reason of a failure
    filtered: bool = False  # a content filter withheld the text
    logprobs: tuple[float, ...] | None = None  # of the tokens that were asked about
    prompt_tokens: int | None = None  # the endpoint's own counts
    completion_tokens: int | None = None


class CallFailed(Exception):
    """A failed attempt: its reason in one line, without secrets, and if and after how many seconds to retry."""

    def __init__(self, reason: str, again: bool = True, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.after = reason, again, after


class Stopped(Exception):
    """Another call of the same batch has stopped all calls."""


Attempt = Callable[[Sequence[T]], Sequence[Answer]]


@dataclass
class Caller:
    """Makes concurrent calls with retries."""

    limiter: Limiter
    max_retries: int = MAX_RETRIES
    sleep: Pause | None = None  # by default a sleep that ends when a call stops all calls

    def each(self, attempt: Attempt[T], groups: Sequence[Sequence[T]], tokens: Sequence[int]) -> list[Answer]:
        """Return the answers to all calls, in their order.

        `attempt` makes one request for the calls of a group, which takes about as many tokens as `tokens` says. If it
        raises `CallFailed`, the request is retried; any other error stops all calls.
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
            request, used = self.limiter.reserve(tokens, pause), (0, 0)
            delay = None
            try:
                answers = attempt(group)
                prompt = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
                # Without a count of the endpoint, the estimate counts.
                used = (sum(prompt) if prompt else tokens, sum(answer.completion_tokens or 0 for answer in answers))
            except CallFailed as failure:
                if failure.again and retry < self.max_retries:
                    delay = pause_before(retry, failure.after)
                    if retry == RETRIES_BEFORE_WARNING:
                        logger.warning("a call has failed %d times and is retried: %s", retry + 1, failure.reason)
                answers = [Answer(error=failure.reason)] * len(group)
            finally:
                self.limiter.settle(request, *used)
            if delay is None:
                break
            pause(delay)
        errors = [answer.error for answer in answers if answer.error is not None]
        self.limiter.count_calls(len(answers), len(errors), errors[-1] if errors else None)
        return answers


def pause_before(retry: int, after: float | None = None) -> float:
    """Return the seconds before a retry (the first is 0): `after`, or exponential backoff, both with jitter."""
    if after is not None:
        return min(after, MAX_RETRY_AFTER) * _jitter.uniform(1.0, 1.1)
    return min(FIRST_PAUSE * 2**retry, MAX_PAUSE) * _jitter.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, Any], now: float) -> float | None:
    """Return the seconds that a response's headers ask to wait: in milliseconds, in seconds or by date.

    `now` is in seconds since 1970.
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
