"""A scorer, a reward term, a system and a target of one's own, from the shell: nothing of the package is edited."""

import json
import re

import pytest
import yaml

from astra_trl.cli.main import main
from astra_trl.hub import model_card

CODE = '''
"""Parts of a user."""
from astra_trl import HFASTSystem, Turn

def soup(exchanges):
    return [float("soup" in exchange.response) for exchange in exchanges]

class Letters:
    """Share of a letter in responses."""
    def __init__(self, letter: str = "e", max_retries: int = 0):  # the name of an endpoint's setting
        self.letter = letter
        assert max_retries == 3
    def __call__(self, exchanges):
        return [exchange.response.count(self.letter) / (len(exchange.response) + 1) for exchange in exchanges]

def asks(nodes):
    return [float("?" in node.exchange.probe) for node in nodes]

class Interview(HFASTSystem):
    """The target hears every probe as a question."""
    label = "Interview"
    paper = "2509.00001"
    defaults = {"tree_depth": 2, "max_new_tokens": 9, "reward": {"harm": 1, "my_parts.asks": 0.5}}

    def __init__(self, *roles, ending: str = "?", **more):
        self.ending = ending
        super().__init__(*roles, **more)

    def target_hears(self, contexts, probes):
        return [probe.rstrip("?") + self.ending for probe in probes]

def answer(messages):
    heard = messages[-1]["content"]
    if not heard.endswith("??"):
        raise ValueError(f"the system was left out: {heard!r}")
    return "I had soup." if len(heard) % 2 else "Fine."
'''
SMALL = ["--num_train_epochs", "1", "--trees_per_round", "2", "--pairs_per_round", "4", "--eval_openings", "2"]
SMALL += ["--min_margin", "0", "--disable_tqdm", "true", "--report_to", "none", "--prompts", "sandbox"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "my_parts.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    import sys

    sys.modules.pop("my_parts", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_own_parts_work_in_every_command_from_the_shell(package, gpt2_folder, capsys):
    own = ["--system", "my_parts.Interview", "--system_kwargs", '{"ending": "??"}', "--scorer", "my_parts.soup"]
    letters = {"type": "my_parts.Letters", "letter": "a", "max_retries": 3}
    own += ["--held_out_scorers", json.dumps(letters), "--target", "my_parts.answer", "--tester", str(gpt2_folder)]
    reward = {"harm": 1, "my_parts.asks": 0.5}  # as the system has it; the target gives no likelihood
    flags = [*own, *SMALL, "--output_dir", "run"]
    assert main(["train", *flags, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    settings = yaml.safe_load(shown)
    assert (settings["system"], settings["tree_depth"], settings["reward"]) == ("my_parts.Interview", 2, reward)
    assert "my_parts.soup, Python code of your own" in shown and "my_parts.answer, Python code" in shown
    assert main(["train", "--system", "my_parts.Interview", "--help"]) == 0
    assert "Longest utterance in tokens. Default: 9." in capsys.readouterr().out

    assert main(["train", *flags]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < summary["harmful_share_after"] < 1 and summary["failed_after"] == 0
    evaluation = json.loads((package / "run" / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation["settings"]["reward"]) == {"harm", "my_parts.asks"}
    assert evaluation["settings"]["scorers"] == ["my_parts.soup", "my_parts.Letters"]

    # The folder alone may not name code.
    assert main(["evaluate", "run", "--draws", "5", "--output_dir", "again"]) == 1
    assert "would import Python code, my_parts." in capsys.readouterr().err
    repeated = [*own[:2], *own[4:10], "--reward", json.dumps(reward)]
    assert main(["evaluate", "run", *repeated, "--draws", "5", "--output_dir", "again"]) == 0
    again = json.loads((package / "again" / "evaluation.json").read_text())
    shares = {row["arm"]: row["value"] for row in again["figures"] if row["figure"] == "harmful_share/my_parts.soup"}
    assert shares["tester"] == summary["harmful_share_after"]

    assert main(["report", "run", "again", "-o", "report.md"]) == 0
    report = (package / "report.md").read_text()
    assert "Interview" in report and re.search(r"my.?_parts\.asks|my parts\.asks", report)
    card = model_card(package / "run")
    assert "Interview" in card and "2509.00001" in card and "my_parts" in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scorer", "my_parts.missing"], "scorer 'my_parts.missing' cannot be imported"),
        (["--system", "my_parts.soup"], "system 'my_parts.soup' is not a subclass of astra_trl.System"),
        (["--reward", '{"my_parts.CODE": 1}'], "cannot be imported"),
        (
            ["--scorer", '{"type": "my_parts.Letters", "word": "a"}'],
            "unexpected keyword argument 'word'; it takes letter",
        ),
        (["--system", "my_parts.Interview", "--system_kwargs", '{"colour": 1}'], "takes no argument 'colour'"),
        (["--target", "my_parts.nothing"], "target 'my_parts.nothing' cannot be imported"),
    ],
)
def test_own_parts_that_cannot_be_used_are_named(package, gpt2_folder, flags, message, capsys):
    common = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--scorer", "my_parts.soup"]
    assert main(["train", *common, *SMALL, "--output_dir", "run", *flags]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
