"""Concurrent calls within limits, with retries and exponential backoff."""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from astra_trl.backends.api.limits import Limiter, Pause
from astra_trl.errors import RunStopped
from astra_trl.progress import DELAY, ProgressBar
from astra_trl.text import visible

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RETRIES = 10  # they take 75 to 150 seconds, in which a server can be restarted
FIRST_PAUSE, MAX_PAUSE = 0.5, 30.0  # seconds
MAX_RETRY_AFTER = 600.0  # seconds; a server that asks for more stops the run
MAX_SILENT_WAIT = 10.0  # seconds; longer waits are logged

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
    cut: bool = False  # at the limit of tokens


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
    """Makes concurrent calls with retries.

    Args:
        limiter (`Limiter`): Limits of the calls.
        max_retries (`int`, *optional*, defaults to `10`): Attempts after the first one.
        sleep (`Callable`, *optional*): Waits; by default a sleep that ends if another call stops all calls.
        name (`str`, *optional*): What is called, for the log.
    """

    limiter: Limiter
    max_retries: int = MAX_RETRIES
    sleep: Pause | None = None
    name: str = "a model"
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)
    _has_failed: bool = field(default=False, init=False)
    _logged_until: float = field(default=0.0, init=False)  # the end of a wait that was logged

    def each(self, attempt: Attempt[T], groups: Sequence[Sequence[T]], tokens: Sequence[int]) -> list[Answer]:
        """Return the answers to all calls, in their order.

        `attempt` makes one request for the calls of a group, which takes about as many tokens as `tokens` says. If it
        raises `CallFailed`, the request is retried; any other error stops all calls.
        """
        stop = threading.Event()
        waiting: SimpleQueue[int] = SimpleQueue()
        ended: SimpleQueue[tuple[int, Sequence[Answer] | BaseException]] = SimpleQueue()

        def pause(seconds: float, reason: str) -> None:
            self._log_wait(seconds, reason)
            if self.sleep is not None:
                self.sleep(seconds)
            else:
                stop.wait(seconds)
            if stop.is_set():
                raise Stopped

        def work() -> None:
            while not stop.is_set():
                try:
                    index = waiting.get_nowait()
                except Empty:
                    return
                try:
                    ended.put((index, self._call(attempt, groups[index], tokens[index], pause)))
                except BaseException as error:
                    ended.put((index, error))

        for index in range(len(groups)):
            waiting.put(index)
        for _ in range(min(self.limiter.limits.max_concurrency, len(groups))):
            # Daemons, as a process that ends must not wait for calls under way, which those of an executor make it do.
            threading.Thread(target=work, daemon=True, name="astra_trl call").start()
        answers: list[Sequence[Answer]] = [()] * len(groups)
        called = f"calling {visible(self.name.partition(' at ')[0])}"
        try:
            with ProgressBar(called, len(groups), "calls", delay=DELAY) as bar:
                for _ in groups:
                    index, result = ended.get()
                    if isinstance(result, BaseException):
                        raise result  # the first error is the cause, later ones follow from it
                    answers[index] = result
                    bar.update()
        finally:
            stop.set()
        return [answer for group in answers for answer in group]

    def _call(
        self, attempt: Attempt[T], group: Sequence[T], tokens: int, pause: Callable[[float, str], None]
    ) -> Sequence[Answer]:
        for retry in count():
            request = self.limiter.reserve(tokens, lambda seconds: pause(seconds, "the limits of the run"))
            used = (0, 0)
            delay, reason = None, ""
            try:
                answers = attempt(group)
                prompt = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
                # Without a count of the endpoint, the estimate counts.
                used = (sum(prompt) if prompt else tokens, sum(answer.completion_tokens or 0 for answer in answers))
            except CallFailed as failure:
                reason = failure.reason
                if failure.after is not None and failure.after > MAX_RETRY_AFTER:
                    raise RunStopped(
                        f"{self.name} asks to wait for {failure.after:.0f} seconds, and a call waits for at most "
                        f"{MAX_RETRY_AFTER:.0f}: continue after that time ({reason})"
                    ) from None
                if failure.again and retry < self.max_retries:
                    delay = pause_before(retry, failure.after)
                self._log_first_failure(reason, "is retried" if delay is not None else "is not retried")
                answers = [Answer(error=reason)] * len(group)
            finally:
                self.limiter.settle(request, *used)
            if delay is None:
                break
            pause(delay, reason)
        errors = [answer.error for answer in answers if answer.error is not None]
        self.limiter.count_calls(len(answers), len(errors), errors[-1] if errors else None)
        return answers

    def _log_first_failure(self, reason: str, consequence: str) -> None:
        with self._lock:
            first, self._has_failed = not self._has_failed, True
        if first:
            logger.warning("a call of %s failed and %s: %s", visible(self.name), consequence, visible(reason))

    def _log_wait(self, seconds: float, reason: str) -> None:
        # Calls that are made at a time wait for the same reason: one of them says so.
        with self._lock:
            now = self.limiter.clock()
            if seconds <= MAX_SILENT_WAIT or now < self._logged_until:
                return
            self._logged_until = now + seconds
        logger.warning("calls of %s wait for %.0f seconds: %s", visible(self.name), seconds, visible(reason))


def pause_before(retry: int, after: float | None = None) -> float:
    """Return the seconds before a retry (the first is 0): `after`, or exponential backoff, both with jitter."""
    if after is not None:
        return after * _jitter.uniform(1.0, 1.1)
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
