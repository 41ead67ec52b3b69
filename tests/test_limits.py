"""Limits per minute, at a time and in all, with a clock that the tests set."""

import itertools
import random
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_trl import InputError
from astra_trl.backends.api.calls import Answer, Caller, CallFailed, pause_before, retry_after
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.errors import BudgetSpent, RunStopped, TooManyFailed


class Clock:
    """Seconds that pass only in `sleep`."""

    def __init__(self):
        self.now, self.lock = 0.0, threading.Lock()

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        with self.lock:
            self.now += seconds


def caller(clock=None, max_retries=10, **limits):
    clock = clock or Clock()
    return Caller(Limiter(Limits(**limits), clock), max_retries, clock.sleep)


def most_in_a_minute(times):
    return max(sum(start <= other < start + 60 for other in times) for start in times)


@given(st.integers(1, 7), st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_no_minute_has_more_requests_than_it_may(most, gaps):
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=most), clock)
    made = []
    for gap in gaps:
        clock.sleep(gap)
        limiter.settle(limiter.reserve(1, clock.sleep))
        made.append(clock.now)
    assert most_in_a_minute(made) <= most
    assert limiter.usage["requests"] == len(gaps)


def test_requests_wait_no_longer_than_they_must():
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=2), clock)
    times = []
    for _ in range(5):
        limiter.reserve(0, clock.sleep)
        times.append(clock.now)
    assert times == [0, 0, 60, 60, 120]


def test_tokens_are_reserved_and_then_settled_by_actual_use():
    clock = Clock()
    limiter = Limiter(Limits(tokens_per_minute=100), clock)
    first = limiter.reserve(80, clock.sleep)
    limiter.settle(first, 10, 5)
    second = limiter.reserve(80, clock.sleep)  # 15 + 80 fit
    assert clock.now == 0
    limiter.settle(second, 40, 30)
    limiter.reserve(80, clock.sleep)
    assert clock.now == 60
    assert limiter.usage["prompt_tokens"] == 50 and limiter.usage["completion_tokens"] == 35


def test_a_request_that_is_larger_than_the_limit_goes_through_alone():
    clock = Clock()
    limiter = Limiter(Limits(tokens_per_minute=100), clock)
    for at in (0, 60, 120):
        limiter.reserve(500, clock.sleep)
        assert clock.now == at


def test_budgets_end_a_run_before_they_are_passed():
    limiter = Limiter(Limits(max_requests=2), Clock())
    for _ in range(2):
        limiter.reserve(1, Clock().sleep)
    with pytest.raises(BudgetSpent, match="^the budget of 2 requests is spent: raise max_requests$") as caught:
        limiter.reserve(1, Clock().sleep)
    assert isinstance(caught.value, RunStopped) and limiter.usage["requests"] == 2
    limiter = Limiter(Limits(max_total_tokens=100), Clock())
    limiter.settle(limiter.reserve(60, Clock().sleep), 30, 20)
    with pytest.raises(BudgetSpent, match="^50 of 100 tokens are spent, and the next call takes about 60"):
        limiter.reserve(60, Clock().sleep)


def test_a_token_budget_waits_for_calls_under_way_that_may_take_less_than_they_reserved():
    limiter = Limiter(Limits(max_total_tokens=100), Clock())
    first = limiter.reserve(60, Clock().sleep)
    waited = []

    def pause(seconds):
        waited.append(seconds)
        limiter.settle(first, 10, 10)

    limiter.reserve(60, pause)
    assert len(waited) == 1


def test_earlier_usage_counts():
    limiter = Limiter(Limits(max_requests=3), Clock())
    limiter.usage = {"requests": 2, "calls": 2}
    limiter.reserve(1, Clock().sleep)
    with pytest.raises(BudgetSpent):
        limiter.reserve(1, Clock().sleep)
    assert limiter.usage["calls"] == 2 and limiter.usage["failed"] == 0


def test_processes_share_every_limit():
    limits = Limits(8, 100, 1000, 50, 5000, 0.1).share(3)
    assert limits == Limits(2, 33, 333, 16, 1666, 0.1)
    assert Limits(max_concurrency=1).share(4).max_concurrency == 1
    with pytest.raises(InputError, match="max_requests=2 is less than one for each of 3 processes"):
        Limits(max_requests=2).share(3)


@pytest.mark.parametrize("wrong", [{"max_requests": 0}, {"max_concurrency": 0}, {"max_failed_share": 1.5}])
def test_limits_that_allow_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Limits(**wrong)


def test_no_more_calls_at_a_time_than_may_be():
    at_once, most, lock, gate = [0], [0], threading.Lock(), threading.Barrier(3)

    def attempt(group):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        gate.wait(10)  # three are there together
        with lock:
            at_once[0] -= 1
        return [Answer(str(group[0]))]

    answers = caller(max_concurrency=3).each(attempt, [[n] for n in range(9)], [0] * 9)
    assert [answer.text for answer in answers] == [str(n) for n in range(9)]
    assert most == [3]


def test_the_default_retries_outlast_an_outage_of_a_minute():
    clock = Clock()

    def attempt(group):
        if clock.now < 60:
            raise CallFailed("connection refused")
        return [Answer("back")]

    for _ in range(20):  # pauses are drawn
        clock.now = 0.0
        (answer,) = caller(clock).each(attempt, [["x"]], [0])
        assert answer.text == "back"


def test_a_call_that_fails_for_good_has_its_reason_and_other_calls_continue(caplog):
    def attempt(group):
        if group == ["bad"]:
            raise CallFailed("HTTP 500")
        return [Answer("fine")]

    one = caller(max_retries=4)
    answers = one.each(attempt, [["good"], ["bad"], ["good"]], [1, 1, 1])
    assert [(answer.text, answer.error) for answer in answers] == [("fine", None), ("", "HTTP 500"), ("fine", None)]
    usage = one.limiter.usage
    assert (usage["calls"], usage["failed"], usage["requests"]) == (3, 1, 2 + 5)
    assert caplog.messages == ["a call of a model failed and is retried: HTTP 500"]


def test_a_permanent_failure_is_not_retried():
    one = caller()
    (answer,) = one.each(lambda group: (_ for _ in ()).throw(CallFailed("too long", again=False)), [["x"]], [1])
    assert answer.error == "too long" and one.limiter.usage["requests"] == 1


@pytest.mark.parametrize(("calls", "may_fail"), [(10, 5), (401, 20)])
def test_too_many_failures_end_a_run_with_the_last_reason(calls, may_fail):
    numbers = itertools.count()

    def attempt(group):
        if next(numbers) >= calls - may_fail - 1:
            raise CallFailed("no")
        return [Answer("yes")]

    one = caller(max_retries=0, max_concurrency=1)
    message = rf"^{may_fail + 1} of {calls} calls failed for good, .*=0\.05: .* \(no\)$"
    with pytest.raises(TooManyFailed, match=message):
        one.each(attempt, [["x"]] * calls, [1] * calls)


def test_any_share_may_fail_if_the_limit_allows_it():
    one = caller(max_retries=0, max_failed_share=1.0)

    def attempt(group):
        raise CallFailed("no")

    assert len(one.each(attempt, [["x"]] * 200, [1] * 200)) == 200


def test_an_error_ends_calls_that_wait_for_a_retry():
    waiting = threading.Event()

    def attempt(group):
        if group == ["wrong"]:
            waiting.wait(10)
            raise InputError("a refused key")
        waiting.set()
        raise CallFailed("later", after=300)

    one = Caller(Limiter(Limits()), 10)
    before = threading.active_count()
    with pytest.raises(InputError, match="a refused key"):
        one.each(attempt, [["later"], ["wrong"]], [1, 1])
    for thread in threading.enumerate():
        if thread.name == "astra_trl call":
            thread.join(10)
    assert threading.active_count() <= before


def test_a_process_that_ends_does_not_wait_for_calls():
    code = """
import time
from astra_trl import FunctionBackend

def answer(messages):
    if messages[-1]["content"] == "wrong":
        raise SystemExit
    time.sleep(1000)

FunctionBackend(answer).open(["slow", "wrong"], seeds=[0, 0]).sample()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "InputError" in done.stderr


def test_long_waits_for_a_limit_are_logged(caplog):
    one = caller(requests_per_minute=1, max_concurrency=1)
    one.each(lambda group: [Answer("fine")], [["x"]] * 3, [0] * 3)
    assert caplog.messages == ["calls of a model wait for 60 seconds: the limits of the run"] * 2


@pytest.mark.parametrize(("after", "waited"), [(600, True), (601, False)])
def test_a_server_is_waited_for_as_long_as_it_asks_up_to_ten_minutes(after, waited):
    answers = iter([CallFailed("busy", after=after), None])

    def attempt(group):
        if (failure := next(answers)) is not None:
            raise failure
        return [Answer("fine")]

    clock = Clock()
    if waited:
        assert caller(clock).each(attempt, [["x"]], [0])[0].text == "fine" and 600 <= clock.now <= 660
        return
    with pytest.raises(RunStopped, match=r"^a model asks to wait for 601 seconds, and a call waits for .* \(busy\)$"):
        caller(clock).each(attempt, [["x"]], [0])


def test_pauses_grow_and_differ():
    random.seed(0)
    state = random.getstate()
    pauses = [[pause_before(retry) for retry in range(10)] for _ in range(50)]
    assert random.getstate() == state  # nobody else's random numbers are used up
    assert all(60 < sum(row) < 152 for row in pauses)
    assert len({row[0] for row in pauses}) > 1
    assert all(0.25 <= row[0] <= 0.5 and 15 <= row[9] <= 30 for row in pauses)
    assert 7 <= pause_before(0, after=7) <= 7.7


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_pause_that_a_server_asks_for(headers, seconds):
    assert retry_after(headers, now=40.0) == seconds
