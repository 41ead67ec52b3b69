"""Numbers of every setting: those that are refused are refused in one line, before anything is loaded."""

from dataclasses import fields
from typing import get_args, get_origin

import pytest
import trl

from astra_trl import InputError
from astra_trl.cli.parse_train import train_parser
from astra_trl.numbers import RULES
from astra_trl.trainers import TRAINERS

ALGORITHMS = [name for name in TRAINERS if name != "ppo" or trl.__version__ < "1.13"]
REFUSED = ["nan", "inf", "-1", "0", "text"]
# Numbers that are accepted of those tried, by the text of the rule.
VALID = {
    "at least 1": (),
    "0 or more": ("0",),
    "above 0": (),
    "above 0 and at most 1": (),
    "between 0 and 1": ("0",),
    "0 or more and below 1": ("0",),
    "0 or more, or inf": ("0", "inf"),
    "a number, or inf": ("-1", "0", "inf"),
    "-1 (no limit) or more": ("-1", "0"),
    "-1 (one process) or more": ("-1", "0"),
    "-1 (num_train_epochs holds) or at least 1": ("-1",),
    "between 0 and 4294967295": ("0",),
    "a finite number": ("-1", "0"),
}


def numeric(parser):
    """Names of the fields that hold numbers, and the kinds of number."""
    found = {}
    for cls in parser.dataclass_types:
        for f in fields(cls):
            kinds = {*(get_args(f.type) or (f.type,))}
            if f.init and kinds & {int, float} and str not in kinds and get_origin(f.type) is not tuple:
                found[f.name] = kinds
    return found


def complaint(check, capsys):
    """The line that a command ends in, or `None` if it does not."""
    try:
        check()
    except InputError as error:
        return f"error: {error}"
    except SystemExit:
        return capsys.readouterr().err
    return None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_of_a_run_is_accepted_or_refused_by_name_in_one_line(algorithm, capsys):
    parser = train_parser("astra-trl train", algorithm)
    settings = {f.name: f for cls in parser.dataclass_types for f in fields(cls)}
    names = numeric(parser)
    assert {"learning_rate", "seed", "lora_r", "tree_width", "max_steps", "temperature"} <= names.keys()
    for name, kinds in names.items():
        requirement = RULES[name][0] if name in RULES else "a finite number"
        for text in REFUSED:
            found = complaint(lambda: parser.fill(parser.parse_given([f"--{name}", text]), "flags"), capsys)
            good = text in VALID[requirement] and not (text == "inf" and kinds == {int})
            if not good:
                assert found is not None and name in found and text in found and found.count("\n") <= 1, (name, text)
                assert found.startswith("error: ") and ("must be" in found or "invalid" in found), found
            elif found is not None:  # by the algorithm's config, which knows more
                assert name.split("_")[0] in found or "PPO" in found, (name, text, found)
    assert settings
    capsys.readouterr()
