"""Rows packed so that what they share is there once: nothing is lost, and nobody sees a stranger's tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_trl.trainers.packing import pack

ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.lists(st.integers(0, 2), max_size=4)),
    min_size=1,
    max_size=8,
)


def unpacked(packed, place):
    """Tokens and positions that the token at a place attends to, its own last."""
    columns = packed.input_ids.shape[1]
    row, column = divmod(place, columns)
    seen = packed.allowed_keys[row, column]
    return packed.input_ids[row][seen].tolist(), packed.position_ids[row][seen].tolist()


@given(ROWS)
def test_each_asked_token_sees_the_tokens_before_it_in_its_own_row(pairs):
    rows = [context + probe for context, probe in pairs]
    starts = [len(context) for context, _ in pairs]
    count = max(len(probe) for _, probe in pairs)
    packed = pack(rows, starts, count, 64)
    for row, start, places in zip(rows, starts, packed.places.tolist(), strict=True):
        for offset, place in enumerate(places):
            end = min(start + offset, len(row))  # after the end of a row, its last token again
            assert unpacked(packed, place) == (row[:end], list(range(end)))


@given(ROWS)
def test_nothing_is_there_more_often_than_in_the_rows(pairs):
    rows = [context + probe for context, probe in pairs]
    packed = pack(rows, [len(context) for context, _ in pairs], 4, 64)
    assert int((packed.segments > 0).sum()) <= sum(map(len, rows))
    assert packed.input_ids.shape[0] <= len(rows)


@pytest.mark.parametrize(("hidden", "shape"), [(4096, (1, 700)), (16, (2, 400))])
def test_rows_are_padded_or_joined_whatever_costs_less(hidden, shape):
    rows = [[row * 1000 + token for token in range(length)] for row, length in enumerate((400, 200, 100))]
    assert pack(rows, [50, 50, 50], 350, hidden).input_ids.shape == shape


@pytest.mark.parametrize("width", [2, 4])
def test_a_context_is_there_once(width):
    contexts = [list(range(100, 130)), list(range(200, 215))]
    rows = [context + [300 + sibling] * 5 for context in contexts for sibling in range(width)]
    packed = pack(rows, [len(context) for context in contexts for _ in range(width)], 5, 64)
    assert int((packed.segments > 0).sum()) == 30 + 15 + 2 * width * 5


def test_a_whole_tree_shares_its_opening():
    opening = list(range(40))
    below = [*opening, 50, 51, 52]
    rows = [[*opening, 60], [*opening, 61], [*below, 60], [*below, 61], [*below, 61]]
    packed = pack(rows, [40, 40, 43, 43, 43], 1, 64)
    assert packed.input_ids.shape == (1, 40 + 2 + 3 + 2)  # equal rows are one


def test_padding_sees_no_token_of_a_row_and_itself():
    packed = pack([list(range(100)), list(range(200, 290))], [50, 50], 50, hidden=1)
    padding = packed.segments == 0
    assert packed.input_ids.shape == (2, 100) and padding.sum() == 10
    seen = packed.allowed_keys[1, 99]
    assert seen[99] and not seen[:90].any()


def test_what_attention_would_cost_more_than_it_saves_is_not_shared():
    """64 rows of unrelated openings after one system prompt: in one packed row each token would attend to all."""
    prompt = list(range(200))
    rows = [prompt + [1000 + 200 * row + token for token in range(100)] for row in range(64)]
    packed = pack(rows, [290] * len(rows), 10, hidden=64)
    assert packed.input_ids.shape[1] <= 800  # of the 6,600 tokens that differ
    assert packed.input_ids.numel() < sum(map(len, rows))
