"""The README's first command, shortened: the sandbox's tester learns to find what the target is rude about."""

import json

from test_run import recipe_defaults

from astra_trl.run import main


def test_the_sandbox_tester_learns(tmp_path, capsys):
    main(recipe_defaults("dpo_sandbox"), ["--output_dir", str(tmp_path / "run"), "--seed", "0"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["harmful_share_before"] <= 0.10
    assert summary["harmful_share_after"] >= 0.50
    assert summary["topics_found"] >= 3
