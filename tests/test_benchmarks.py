"""The speed benchmarks on their smallest settings: they run, and their figures are consistent."""

import json
import sys
from pathlib import Path

import pytest

TINY = ["--shape", "sandbox", "--depth", "1", "--new-tokens", "4", "--turns", "1"]


@pytest.fixture
def measure(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *TINY, *flags])
        __import__(f"benchmarks.{name}", fromlist=["main"]).main()
        table = capsys.readouterr().out.splitlines()
        assert max(map(len, table[:-1])) <= 100
        return table, json.loads(table[-1])

    return run


@pytest.mark.parametrize(
    ("algorithm", "full", "ways"),
    [("dpo", False, {"separate_rows", "plain_trl"}), ("rloo", True, {"separate_rows"})],
)
def test_a_round_is_measured_beside_other_ways_to_train_on_its_records(measure, algorithm, full, ways):
    _, figures = measure("round", "--algorithm", algorithm, "--trees", "2", *(["--full"] if full else []))
    assert {name.removeprefix("vs_") for name in figures if name.startswith("vs_")} == {*ways, "lower_bound"}
    assert all(figures[f"vs_{way}"] > 0 for way in ways) and 0 < figures["outside_model_passes"] < 1
    seconds = figures["seconds_of_parts"]
    assert sum(seconds.values()) == pytest.approx(figures["seconds"], abs=0.01)
    # DPO's reference, and RLOO's penalty of divergence from it.
    passes = ("collecting: forward", "training: forward", "training: reference", "training: backward")
    assert all(seconds[f"{name} passes"] > 0 for name in passes)


def test_all_ways_of_growing_trees_are_measured(measure):
    _, figures = measure("rollout", "--count", "2", "--width", "2")
    assert {"vs_node_by_node", "vs_level_batched", "vs_lower_bound", "vs_decoding_alone"} < set(figures)
    assert figures["vs_lower_bound"] < figures["vs_decoding_alone"]


def test_packed_rows_have_the_tokens_and_the_attention_of_texts_of_several_lengths(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.bounds import packed, unique_tokens

    lengths = [10, 20, 500, 30, 80] * 20
    rows, length = packed(sum(lengths), sum(n**2 for n in lengths) / 2, block=1024)
    assert sum(rows) * length == pytest.approx(sum(lengths), rel=0.01)
    assert sum(rows) * length**2 == pytest.approx(sum(n**2 for n in lengths), rel=0.05)
    assert max(rows) * length <= 1024 + length

    pair = {"prompt_ids": [1] * 10, "chosen_ids": [2] * 2, "rejected_ids": [3] * 4}
    below = {"prompt_ids": [1] * 10 + [2] * 2 + [4], "probe_ids": [[5], [6]]}
    assert unique_tokens([pair, pair]) == (16, 6, 12**2 / 2 + (14**2 - 10**2) / 2)
    assert unique_tokens([pair, below]) == (16 + 1 + 2, 6 + 2, (14**2 + 14**2 - 10**2 + 14**2 - 13**2) / 2)


def test_openings_have_the_lengths_of_reddit(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    import random

    import numpy as np

    from benchmarks.workloads import draw_lengths

    lengths = draw_lengths("reddit", 1000, random.Random(0), None)
    assert np.quantile(lengths, [0.5, 0.9, 0.99]) == pytest.approx([61, 203, 541], rel=0.03)
    assert lengths != sorted(lengths) and draw_lengths("reddit", 5, random.Random(0), 3000)[0] == 3000
