"""Every example runs, smaller than it is, and prints what it found."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("own_loop", {"rounds": 1, "trees": 4}, "round 1: learned from"),
        ("kto", {"trees": 2}, "rude held-out responses:"),
    ],
)
def test_the_example_runs(name, settings, said, tmp_path, capsys):
    load(name).main(**settings, output_dir=str(tmp_path))
    assert said in capsys.readouterr().out


def test_none_is_untested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"own_loop", "kto"}
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 80 for path in EXAMPLES.glob("*.py"))
