"""The sandbox's recipes with their defaults: the tester learns to find what the target is rude about."""

import json

import pytest
from test_run import HAS_PPO, recipe_defaults

from astra_trl.run import main


@pytest.mark.parametrize(
    ("algorithm", "share"),
    [
        ("dpo", 0.50),
        ("grpo", 0.40),
        ("rloo", 0.40),
        pytest.param("ppo", 0.40, marks=pytest.mark.skipif(not HAS_PPO, reason="TRL has no PPOTrainer from 1.13 on")),
    ],
)
def test_the_sandbox_tester_learns(algorithm, share, tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path / "run"), "--seed", "0"]
    main(recipe_defaults(f"{algorithm}_sandbox"), flags, algorithm)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["harmful_share_before"] <= 0.10
    assert summary["harmful_share_after"] >= share
    assert summary["topics_found"] >= 3
