"""How many calls and tokens a backend may take, at a time, in a minute and in all; and what it has taken."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from astra_trl.errors import BudgetSpent, InputError, TooManyFailed

MINUTE = 60.0
FEWEST_CALLS = 100  # that a share of failed ones is taken of
COUNTED = ("calls", "requests", "prompt_tokens", "completion_tokens", "failed", "empty", "filtered", "cut")

Pause = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """What a backend may take of an endpoint or a function; `None` is any number.

    Args:
        max_concurrency (`int`, *optional*, defaults to `8`):
            Calls at a time.
        requests_per_minute (`int`, *optional*):
            Requests in any 60 seconds; one that is tried again counts again.
        tokens_per_minute (`int`, *optional*):
            Tokens in any 60 seconds, of what is sent and what is answered: estimated before a request, and as the
            endpoint counts them behind it.
        max_requests (`int`, *optional*):
            Requests in all; then `BudgetSpent`.
        max_total_tokens (`int`, *optional*):
            Tokens in all; `BudgetSpent` before a request that would go beyond.
        max_failed_share (`float`, *optional*, defaults to `0.05`):
            Share of calls that may fail for good, of all of them or of 100 where they are fewer; then `TooManyFailed`.
    """

    max_concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_requests: int | None = None
    max_total_tokens: int | None = None
    max_failed_share: float = 0.05

    def __post_init__(self) -> None:
        for name in (
            "max_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "max_requests",
            "max_total_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.max_failed_share <= 1:
            raise InputError(f"max_failed_share must be between 0 and 1, got {self.max_failed_share}")

    def share(self, processes: int) -> "Limits":
        """What each of so many processes may take, so that all together take no more; one call at a time at the least.

        Raises `InputError` where a limit is too small to be shared.
        """
        shares: dict[str, int] = {"max_concurrency": max(1, self.max_concurrency // processes)}
        for name in ("requests_per_minute", "tokens_per_minute", "max_requests", "max_total_tokens"):
            if (value := getattr(self, name)) is not None:
                shares[name] = value // processes
                if not shares[name]:
                    raise InputError(f"{name}={value} is less than one for each of {processes} processes: raise it")
        return replace(self, **shares)


class Reservation:
    """What a request takes of the limits: its time and the tokens it is counted for."""

    def __init__(self, at: float, tokens: int) -> None:
        self.at, self.tokens = at, tokens


class Limiter:
    """Lets requests through as `Limits` allow, and counts them; for several threads, and several backends.

    Args:
        limits (`Limits`):
            What may be taken.
        clock (`Callable[[], float]`, *optional*):
            Seconds that only grow.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[Reservation] = deque()  # of the last minute
        self._under_way = 0  # tokens of requests that are not settled
        self._usage = dict.fromkeys(COUNTED, 0)

    @property
    def usage(self) -> dict[str, int]:
        """What was taken so far, as JSON: `calls`, of which `failed` for good; `requests`, more where a call was tried
        again; `prompt_tokens` and `completion_tokens`; answers that were `empty`, `filtered` or `cut`."""
        with self._lock:
            return dict(self._usage)

    @usage.setter
    def usage(self, earlier: Mapping[str, int]) -> None:
        with self._lock:
            self._usage = {**dict.fromkeys(COUNTED, 0), **{name: int(count) for name, count in earlier.items()}}

    def reserve(self, tokens: int, pause: Pause) -> Reservation:
        """Waits, by `pause(seconds)`, until a request of about so many tokens may be made. Raises `BudgetSpent`."""
        while True:
            with self._lock:
                wait = self._wait(tokens)
                if wait <= 0:
                    request = Reservation(self._clock(), tokens)
                    self._recent.append(request)
                    self._under_way += tokens
                    self._usage["requests"] += 1
                    return request
            pause(wait)

    def settle(self, request: Reservation, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Counts a request that has ended for what it took."""
        with self._lock:
            self._under_way -= request.tokens
            request.tokens = prompt_tokens + completion_tokens
            self._usage["prompt_tokens"] += prompt_tokens
            self._usage["completion_tokens"] += completion_tokens

    def count(self, name: str, number: int = 1) -> None:
        """Adds to one of the counts."""
        with self._lock:
            self._usage[name] += number

    def ended(self, calls: int, failed: int, reason: str | None) -> None:
        """Counts calls that have ended, some of them for good without an answer. Raises `TooManyFailed`."""
        with self._lock:
            self._usage["calls"] += calls
            self._usage["failed"] += failed
            usage = dict(self._usage)
        if failed and usage["failed"] > self.limits.max_failed_share * max(usage["calls"], FEWEST_CALLS):
            raise TooManyFailed(
                f"{usage['failed']} of {usage['calls']} calls failed for good, which is more than max_failed_share="
                f"{self.limits.max_failed_share:g}: see to the cause ({reason})"
            )

    def _wait(self, tokens: int) -> float:
        # Seconds until the next request may be asked for again; 0 where it may be made.
        limits, usage = self.limits, self._usage
        if limits.max_requests is not None and usage["requests"] >= limits.max_requests:
            raise BudgetSpent(f"the budget of {limits.max_requests} requests is spent: raise max_requests")
        if limits.max_total_tokens is not None:
            taken = usage["prompt_tokens"] + usage["completion_tokens"]
            if taken + tokens > limits.max_total_tokens:
                raise BudgetSpent(
                    f"{taken} of {limits.max_total_tokens} tokens are spent, and the next call takes about {tokens}: "
                    "raise max_total_tokens"
                )
            if taken + self._under_way + tokens > limits.max_total_tokens:
                return 0.05  # those that are under way may take less than they have reserved
        now = self._clock()
        while self._recent and self._recent[0].at + MINUTE <= now:
            self._recent.popleft()
        wait = 0.0
        if limits.requests_per_minute is not None and len(self._recent) >= limits.requests_per_minute:
            wait = self._recent[len(self._recent) - limits.requests_per_minute].at + MINUTE - now
        if limits.tokens_per_minute is not None:
            over = sum(request.tokens for request in self._recent) + tokens - limits.tokens_per_minute
            for request in self._recent:  # one that is larger than the limit goes through alone
                if over <= 0:
                    break
                over -= request.tokens
                wait = max(wait, request.at + MINUTE - now)
        return wait
