"""Functions of the user's own: what they may return, and one line about everything else."""

import asyncio
import math
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from astra_trl import Exchange, InputError, Node, Reward, Tree
from astra_trl.callables import call, check_callable
from astra_trl.rewards import Harm
from astra_trl.rewards.credit import get_credit, set_credit
from astra_trl.scorers.base import measuring, validate_scores
from astra_trl.systems.goals import Goal, GoalScorer

EXCHANGES = [Exchange((), "hi", "soup"), Exchange((), "ho", "tea")]


def node() -> Node:
    return Node(EXCHANGES[0], [0], [1], -1.0)


def scores(function) -> list[float]:
    return validate_scores("mine", function, EXCHANGES)


@pytest.mark.parametrize(
    "returned",
    [
        (0.5, 1),
        [True, False],
        np.array([0.5, 0.25], dtype=np.float16),
        torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(0.5), np.float32(0.25)],
        pd.Series([0.5, 0.25], index=[7, 3]),
        (value for value in [0.5, 0.25]),
        [math.nan, 0.5],
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_sequences_of_numbers_become_floats(returned):
    values = [0.5, 0.25] if not isinstance(returned, tuple | list) else [float(value) for value in returned]
    got = scores(lambda exchanges: returned)
    assert got == pytest.approx(values, nan_ok=True) and {type(value) for value in got} == {float}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None"),
        (0.5, "returned 0.5, of type float"),
        ("ab", "returned 'ab', of type str"),
        ({0: 0.5, 1: 0.5}, "returned an object of type dict"),
        ({0.5, 0.25}, "returned an object of type set"),
        (np.zeros((2, 1)), r"returned an object of type ndarray and shape \(2, 1\)"),
        (torch.tensor(0.5), r"returned an object of type Tensor and shape \(\)"),
        (pd.DataFrame({0: [0.5, 0.5]}), r"returned an object of type DataFrame and shape \(2, 1\)"),
        ([0.5], "returned 1 values for 2 exchanges"),
        (["0.5", "0.5"], "returned '0.5', of type str as value 1"),
        ([0.5, None], "returned None as value 2"),
        ([[0.5], [0.5]], "returned an object of type list as value 1"),
        ([np.zeros(1), np.zeros(1)], r"returned an object of type ndarray and shape \(1,\) as value 1"),
    ],
    ids=str,
)
def test_anything_else_is_named_with_what_to_return(returned, message):
    with pytest.raises(InputError, match=f"^scorer 'mine' {message}: return one number per exchange, in a list, nan"):
        scores(lambda exchanges: returned)
    with pytest.raises(InputError, match=f"^reward term 'mine' {message.replace('exchange', 'node')}: .* per node"):
        Reward({"mine": (1.0, lambda nodes: returned)})([node(), node()])


def divide(batch):
    return [1 / 0 for _ in batch]


def leave(batch):
    sys.exit(0)


def fail_late(batch):
    yield 0.5
    raise LookupError("two\nlines")


async def wait(batch):
    return [0.5] * len(batch)


def line(function, below: int) -> str:
    return rf"test_callables\.py:{function.__code__.co_firstlineno + below}\)$"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (divide, r"raised ZeroDivisionError: division by zero \(.*" + line(divide, 1)),
        (leave, r"called sys.exit\(0\), which ends the whole run: .* \(.*" + line(leave, 1)),
        (fail_late, r"raised LookupError: two lines \(.*" + line(fail_late, 2)),
        (partial(divide), r"raised ZeroDivisionError: division by zero \(.*" + line(divide, 1)),
        (lambda batch: wait(batch), "is an async function: give a function that runs it with asyncio.run$"),
    ],
)
def test_an_error_of_ones_own_code_is_one_line_with_its_place(function, message):
    with pytest.raises(InputError, match=f"^scorer 'mine' {message}") as caught:
        scores(function)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=f"^scorer 'mine' {message}"):
        validate_scores("mine", measuring(function, "probe"), EXCHANGES)
    with pytest.raises(InputError, match=f"^scorer 'mine' {message}"):
        GoalScorer([Goal("be rude", lambda exchanges: [0.5])], function, "mine")(EXCHANGES)
    with pytest.raises(InputError, match=f"^reward term 'mine' {message}"):
        Reward({"mine": (1.0, function)})([node()])


def test_a_bug_of_the_package_keeps_its_traceback():
    with pytest.raises(KeyError):
        Reward({"harm": (1.0, Harm("a"))})([node()])


def multiply(matrix):
    return matrix @ matrix


def test_an_error_in_an_installed_package_names_the_line_that_called_it():
    with pytest.raises(InputError, match=r"raised RuntimeError.*" + line(multiply, 1)):
        call("it", multiply, torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"raised RuntimeError: .* \(functional\.py:\d+\)$"):
        call("it", torch.functional.norm, torch.zeros(2, dtype=torch.int64))


class Scorer:
    def __init__(self, word):
        self.word = word

    def __call__(self, exchanges):
        return [0.5] * len(exchanges)


class AsyncScorer:
    async def __call__(self, exchanges):
        return [0.5] * len(exchanges)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Scorer, r"is the class Scorer: give an instance, Scorer\(...\)"),
        (3, "is 3, of type int: give a function of the exchanges"),
        (None, "is None: give a function"),
        (wait, "is an async function"),
        (partial(wait), "is an async function"),
        (AsyncScorer(), "is an async function"),
        (lambda: [], r"takes \(\), but is called with \(exchanges\): too many positional arguments"),
        (lambda a, b: [], r"takes \(a, b\), but .*\(exchanges\): missing a required argument: 'b'"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_first_call(function, message):
    with pytest.raises(InputError, match=f"^it {message}"):
        check_callable("it", function, "exchanges")
    with pytest.raises(InputError, match=f"^reward term 'mine' {message.replace('exchanges', 'nodes')}"):
        Reward({"mine": (1.0, function)})


def test_keyword_arguments_that_a_function_does_not_take_are_refused():
    check_callable("it", lambda nodes, word="a": [], "nodes", {"word": "b"})
    with pytest.raises(InputError, match=r"called with \(nodes, colour=...\): got an unexpected keyword argument"):
        check_callable("it", lambda nodes, word="a": [], "nodes", {"colour": 1})
    for fine in (Scorer("a"), partial(max, key=abs), len, torch.nn.Linear(1, 1)):
        check_callable("it", fine, "exchanges")
    check_callable("it", wait, "messages", allow_async=True)


def test_a_credit_that_returns_values_is_refused():
    tree = Tree((), [node()])
    with pytest.raises(InputError, match="^the credit returned an object of type list: set node.credit"):
        set_credit(get_credit(lambda tree: [0.5]), tree)
    with pytest.raises(InputError, match=r"^the credit takes \(\), but is called with \(tree\)"):
        get_credit(lambda: None)
    with pytest.raises(InputError, match=r"^the credit raised ZeroDivisionError: .*test_callables.py:\d+\)$"):
        set_credit(lambda tree: 1 / 0, tree)


def test_a_function_that_reads_the_probe_is_not_changed_when_another_part_is_measured():
    def reads_probe(exchanges):
        return [float(exchange.probe == "soup") for exchange in exchanges]

    reads_probe.of = "probe"
    assert measuring(reads_probe, "response")(EXCHANGES) == [1.0, 0.0]
    assert reads_probe.of == "probe"
    reads_probe.of = "answer"
    with pytest.raises(InputError, match="of='answer' is not a part of an exchange"):
        scores(measuring(reads_probe, "probe"))


def test_asyncio_run_makes_a_scorer_of_an_async_function():
    assert scores(lambda exchanges: asyncio.run(wait(exchanges))) == [0.5, 0.5]
