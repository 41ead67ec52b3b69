"""Backends without a model."""

import pytest

from astra_trl import InputError
from astra_trl.backends.static import ListedBackend


def sample_texts(session) -> list[str]:
    return [sample.text for sample in session.sample()]


def test_texts_depend_on_the_rows_seed_and_siblings_and_not_on_other_rows():
    backend = ListedBackend([f"text {number}" for number in range(5000)])
    rows = backend.open(["a", "b", "c"], seeds=[1, 2, 3]).branch([(0, 0), (1, 0), (2, 0), (2, 1)])
    first = sample_texts(rows)
    assert len(set(first)) == 4 and set(first) <= set(backend.texts)
    assert sample_texts(backend.open(["other"], seeds=[3]).branch([(0, 1)])) == [first[3]]
    rows.append(["answer"] * 4)
    below = rows.branch([(row, 0) for row in range(4)])
    again = backend.reopen(below.saved())
    assert sample_texts(below) == sample_texts(again) != first


def test_a_list_of_nothing_or_of_conversations_is_refused():
    with pytest.raises(InputError, match=r"'mine.txt' must hold at least one text"):
        ListedBackend([], "mine.txt")
    with pytest.raises(InputError, match="no conversation of several turns"):
        ListedBackend([("a", "b")])


def test_other_texts_are_another_description():
    assert ListedBackend(["a"]).description != ListedBackend(["b"]).description
