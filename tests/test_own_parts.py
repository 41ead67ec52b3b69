"""A scorer, a reward term, a system and a target of one's own, from the shell: nothing of the package is edited."""

import json
import re
import shlex

import pytest
import yaml
from transformers import PreTrainedModel

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
MISTAKES = '''
CODE = "text"

class Plain:
    """No function."""

class Broken:
    def __init__(self):
        raise OSError("no key")

def two(exchanges, more):
    return []

async def later(exchanges):
    return []
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
    assert "the target's. Default: 9." in " ".join(capsys.readouterr().out.split())

    assert main(["train", *flags]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < summary["harmful_share_after"] < 1 and summary["failed_after"] == 0
    evaluation = json.loads((package / "run" / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation["settings"]["reward"]) == {"harm", "my_parts.asks"}
    assert evaluation["settings"]["scorers"] == ["my_parts.soup", "my_parts.Letters"]

    # The folder alone may not name code.
    assert main(["evaluate", "run", "--draws", "5", "--output_dir", "again"]) == 1
    said = capsys.readouterr().err
    repeated = shlex.split(said.partition("if you trust them, repeat them: ")[2])
    flags = ("--system", "--scorer", "--held_out_scorers", "--reward", "--target", "--baseline")
    assert [part for part in repeated if part.startswith("--")] == [*flags]
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
        (["--scorer", "my_parts.soop"], "my_parts.py has no 'soop'; did you mean my_parts.soup?"),
        (["--scorer", "my_parts.CODE"], "scorer 'my_parts.CODE' is 'text', of type str: give a function"),
        (["--scorer", "my_parts.Plain"], "scorer 'my_parts.Plain' is an object of type Plain: give a function"),
        (
            ["--scorer", "my_parts.two"],
            "scorer 'my_parts.two' takes (exchanges, more), but is called with (exchanges)",
        ),
        (["--scorer", "my_parts.later"], "scorer 'my_parts.later' is an async function"),
        (["--scorer", "my_parts.Broken"], "scorer 'my_parts.Broken' raised OSError: no key (my_parts.py:"),
        (["--scorer", '{"type": "my_parts.soup", "word": "a"}'], "got an unexpected keyword argument 'word'"),
        (["--scorer", "soup"], "unknown scorer 'soup': choose one of classifier"),
        (["--scorer", "my_parts.py"], "or give the dotted path of your own code, my_parts.my_function"),
        (["--scorer", "./my_parts.py:soup"], "or give the dotted path of your own code, my_parts.soup"),
        (["--scorer", "my_parts:soup"], "unknown scorer 'my_parts:soup'"),
        (["--scorer", "no_module.soup"], "No module named 'no_module': run from the folder of its module"),
        (
            ["--scorer", "broken.soup"],
            "module 'broken' raised ModuleNotFoundError: No module named 'gone' (broken.py:2)",
        ),
        (
            ["--scorer", "script.soup"],
            "module 'script' called sys.exit(0), which ends the whole run: let it raise an error instead",
        ),
        (["--scorer", "unfinished.soup"], "module 'unfinished' raised SyntaxError: "),
        (["--reward", '{"my_parts.two": 1}'], "reward term 'my_parts.two' takes (exchanges, more)"),
        (["--reward", '{"my_parts.py": 1}'], "unknown reward term 'my_parts.py': choose one of answer_harm"),
        (["--target", "my_parts.two"], "target 'my_parts.two' takes (exchanges, more), but is called with (messages)"),
        (
            ["--target", "my_parts.py"],
            "unknown target 'my_parts.py': give a Hub id or folder, or give the dotted path",
        ),
        (["--target", "my_parts:answer"], "or give the dotted path of your own code, my_parts.answer"),
        (
            ["--target", "script.answer"],
            "module 'script' called sys.exit(0), which ends the whole run: let it raise an error instead",
        ),
        (["--scorer", "soup", "--dry_run"], "unknown scorer 'soup': choose one of classifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_code_that_cannot_be_called_is_named_before_models_are_loaded(
    package, gpt2_folder, flags, message, capsys, monkeypatch
):
    (package / "my_parts.py").write_text(CODE + MISTAKES)
    (package / "broken.py").write_text("import json\nimport gone\n")
    (package / "script.py").write_text("import sys\nsys.exit(0)\n")
    (package / "unfinished.py").write_text("def soup(:\n")
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    models = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder)]
    common = [*models, "--scorer", "my_parts.soup", "--output_dir", "run"]
    assert main(["train", *common, *SMALL, *flags]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


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
