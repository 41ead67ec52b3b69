"""Rate limiter and budget: calls and tokens that a backend may use, and those that it has used."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from astra_trl.errors import BudgetSpent, InputError, TooManyFailed
from astra_trl.numbers import check_numbers

MINUTE = 60.0
MIN_CALLS = 100  # of which the share of failed calls is taken, even if there are fewer
COUNTS = ("calls", "requests", "prompt_tokens", "completion_tokens", "failed", "empty", "filtered", "cut")
SHARED = ("requests_per_minute", "tokens_per_minute", "max_requests", "max_total_tokens")

Pause = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """Limits for an endpoint or a function. `None` means unlimited.

    Args:
        max_concurrency (`int`, *optional*, defaults to `8`):
            Calls at a time.
        requests_per_minute (`int`, *optional*):
            Requests in any 60 seconds; every retry counts.
        tokens_per_minute (`int`, *optional*):
            Tokens in any 60 seconds, of requests and answers: an estimate before a request, and the endpoint's own
            count after it.
        max_requests (`int`, *optional*):
            Requests in all; then `BudgetSpent`.
        max_total_tokens (`int`, *optional*):
            Tokens in all; `BudgetSpent` before a request that would exceed them.
        max_failed_share (`float`, *optional*, defaults to `0.05`):
            Share of calls that may fail for good, of all calls or of 100 if there are fewer; then `TooManyFailed`.
    """

    max_concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_requests: int | None = None
    max_total_tokens: int | None = None
    max_failed_share: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(vars(self))

    def share(self, processes: int) -> "Limits":
        """Return the limits of each of several processes, which together stay within these limits.

        Each may make at least one call at a time. Raises `InputError` if another limit is too small to be shared.
        """
        shares: dict[str, int] = {"max_concurrency": max(1, self.max_concurrency // processes)}
        for name in SHARED:
            if (value := getattr(self, name)) is not None:
                shares[name] = value // processes
                if not shares[name]:
                    raise InputError(f"{name}={value} is less than one for each of {processes} processes: raise it")
        return replace(self, **shares)


@dataclass(eq=False)
class Reservation:
    """The share of a request in the limits: its time and the tokens that it counts for."""

    time: float
    tokens: int


class Limiter:
    """Rate limiter and counter for several threads and several backends."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self._lock = threading.Lock()
        self._recent: deque[Reservation] = deque()  # of the last minute
        self._unsettled = 0  # tokens of requests that have not ended
        self._usage = dict.fromkeys(COUNTS, 0)

    @property
    def usage(self) -> dict[str, int]:
        """Usage so far, as JSON: `calls`, of which `failed` for good; `requests`, which include retries;
        `prompt_tokens` and `completion_tokens`; answers that were `empty`, `filtered` or `cut`."""
        with self._lock:
            return dict(self._usage)

    @usage.setter
    def usage(self, earlier: Mapping[str, int]) -> None:
        with self._lock:
            self._usage = {**dict.fromkeys(COUNTS, 0), **{name: int(count) for name, count in earlier.items()}}

    def reserve(self, tokens: int, pause: Pause) -> Reservation:
        """Wait, by `pause(seconds)`, until a request of about that many tokens is allowed. Raises `BudgetSpent`."""
        while True:
            with self._lock:
                wait = self._wait(tokens)
                if wait <= 0:
                    request = Reservation(self.clock(), tokens)
                    self._recent.append(request)
                    self._unsettled += tokens
                    self._usage["requests"] += 1
                    return request
            pause(wait)

    def settle(self, request: Reservation, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Replace the estimate of a request that has ended by its actual tokens."""
        with self._lock:
            self._unsettled -= request.tokens
            request.tokens = prompt_tokens + completion_tokens
            self._usage["prompt_tokens"] += prompt_tokens
            self._usage["completion_tokens"] += completion_tokens

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of the counts."""
        with self._lock:
            self._usage[name] += number

    def count_calls(self, calls: int, failed: int, reason: str | None) -> None:
        """Count calls that have ended, and those of them that failed for good. Raises `TooManyFailed`."""
        with self._lock:
            self._usage["calls"] += calls
            self._usage["failed"] += failed
            usage = dict(self._usage)
        if failed and usage["failed"] > self.limits.max_failed_share * max(usage["calls"], MIN_CALLS):
            raise TooManyFailed(
                f"{usage['failed']} of {usage['calls']} calls failed for good, which is more than max_failed_share="
                f"{self.limits.max_failed_share:g}: fix the cause ({reason})"
            )

    def _wait(self, tokens: int) -> float:
        """Return the seconds after which to try again, 0 if the request is allowed now."""
        limits, usage = self.limits, self._usage
        if limits.max_requests is not None and usage["requests"] >= limits.max_requests:
            raise BudgetSpent(f"the budget of {limits.max_requests} requests is spent: raise max_requests")
        if limits.max_total_tokens is not None:
            spent = usage["prompt_tokens"] + usage["completion_tokens"]
            if spent + tokens > limits.max_total_tokens:
                raise BudgetSpent(
                    f"{spent} of {limits.max_total_tokens} tokens are spent, and the next call takes about {tokens}: "
                    "raise max_total_tokens"
                )
            if spent + self._unsettled + tokens > limits.max_total_tokens:
                return 0.05  # requests that have not ended may use less than they have reserved
        now = self.clock()
        while self._recent and self._recent[0].time + MINUTE <= now:
            self._recent.popleft()
        wait = 0.0
        if limits.requests_per_minute is not None and len(self._recent) >= limits.requests_per_minute:
            wait = self._recent[-limits.requests_per_minute].time + MINUTE - now
        if limits.tokens_per_minute is not None:
            excess = sum(request.tokens for request in self._recent) + tokens - limits.tokens_per_minute
            for request in self._recent:  # a request above the limit is allowed alone
                if excess <= 0:
                    break
                excess -= request.tokens
                wait = max(wait, request.time + MINUTE - now)
        return wait
