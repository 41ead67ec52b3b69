"""Arguments of an evaluation: from flags, YAML files and the settings of the run that trained the tester."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from astra_trl.backends.api.endpoint import API_PREFIX, endpoint_of, target_model
from astra_trl.cli.config import EvaluateArguments, LoadArguments, RunArguments, fits
from astra_trl.cli.lengths import set_chat_lengths
from astra_trl.cli.parser import Parser
from astra_trl.cli.settings_file import read_settings, read_settings_file
from astra_trl.cli.trust import INHERITED, held_out_source, is_same_source, refuse_foreign, refuse_switched_on
from astra_trl.cli.unused_flags import refuse_unused
from astra_trl.errors import InputError
from astra_trl.links import refuse_links
from astra_trl.sandbox import named_world
from astra_trl.systems import system_class

ARMS = ("tester", "baseline", "openings")


def evaluate_parser() -> Parser:
    """Return the parser of `astra-trl evaluate`."""
    parser = Parser(
        [EvaluateArguments, LoadArguments],
        "astra-trl evaluate",
        usage="astra-trl evaluate TESTER [--config FILE] [flags...]",
        description="Measure a tester on held-out openings, beside the untrained one and the\nopenings alone.",
        epilog="""\
A run's folder brings its own settings: flags win over the file of --config,
which wins over the run's config.yaml. Files, addresses and Python code outside
of the folder have to be repeated. With the run's own file of prompts as
--prompts, the openings are those of its prompts that it held out.

examples:
  astra-trl evaluate runs/dpo_gpt2
  astra-trl evaluate runs/dpo_gpt2 --target openai-community/gpt2-large \\
      --also perez=some/tester --also advbench=advbench.csv:goal
""",
    )
    parser.add_argument("folder", nargs="?", metavar="TESTER", help="the same as --tester")
    return parser


def parse_evaluate(argv: Sequence[str]) -> tuple[EvaluateArguments, LoadArguments]:
    """Parse the arguments of an evaluation: flags win over the file of `--config`, which wins over the settings of the
    run that trained the tester, if it is a run's folder."""
    parser = evaluate_parser()
    given = parser.parse_given(argv)
    folder, path = given.pop("folder", None), given.pop("config", None)
    if folder is not None and given.setdefault("tester", folder) != folder:
        parser.error(f"two testers, {folder!r} and {given['tester']!r}: give one")
    file = read_settings_file(path)
    refuse_switched_on(path, file.settings, given)
    if "tree_depth" in file.settings:
        raise InputError(f"config {path!r} is a run's: give the run's folder as the tester, and leave --config out")
    in_file = parser.settings_in(file)
    asked = {**in_file, **given}
    if asked.get("tester") is None:
        parser.error("no tester: give a run's folder, a model's folder or a Hub id")
    run = run_settings(asked["tester"])
    inherited = _inherited(run) if run else {}
    if run:
        if "prompts_column" not in asked and is_same_source(asked.get("prompts"), held_out_source(run)):
            asked["prompts"] = None  # those that the run held out
        refuse_foreign(asked["tester"], run, inherited, asked)
    chosen_class = system_class(asked.get("system") or inherited.get("system") or "astprompter")
    if not run:
        own = chosen_class.default_settings()
        inherited = {**own, "depth": own.get("tree_depth", 3)}
    settings = {**{key: value for key, value in inherited.items() if key in parser.hints}, **asked}
    if (world := named_world(settings.get("world"))) is not None:
        for name, value in (("target", [world.target]), ("baseline", world.tester)):
            settings[name] = settings.get(name) or value
    elif not run and settings.get("prompts") is None and chosen_class.own_opening({}) is None:
        folder = "" if Path(asked["tester"]).is_dir() else f" ({asked['tester']!r} is not a folder here)"
        raise InputError(f"no prompts{folder}: give --prompts with a named set, a file or a Hub dataset id")
    args, load = parser.fill(settings)
    set_chat_lengths(args, {**(inherited if run else {}), **asked})
    called = {name: f"config {path!r}: {name}" for name in in_file} | {name: f"--{name}" for name in given}
    refuse_unused(called, args, load)
    args.run_settings = run
    if not args.target:
        raise InputError("no target: give a Hub id or folder with --target")
    for target in args.target:
        endpoint_of(target)  # a wrong setting is an error before models are loaded
    if args.output_dir is None and Path(args.tester).is_dir():
        # Not the run's own evaluation folder: that one's tester was not loaded from this folder.
        names = [Path(target_model(target).removeprefix(API_PREFIX)).name for target in args.target]
        args.output_dir = str(Path(args.tester) / f"evaluation-{'+'.join(names)}")
    _check_arms(args.also or ())
    return args, load


def run_settings(tester: str) -> dict[str, Any]:
    """Return the settings in the `config.yaml` of the run that trained a tester, if the tester is a run's folder."""
    file = Path(tester) / "config.yaml"
    settings = read_settings(file) if file.is_file() else {}
    if "tree_depth" not in settings:  # not a run's
        return {}
    if "likelihood_weight" in settings:
        raise InputError(
            f"'{file}' was written by an earlier version, whose settings had other names: rename that file, and give "
            "--target, --baseline, --scorer, --prompts and --depth yourself"
        )
    for cls in (RunArguments, LoadArguments):
        for f in fields(cls):
            value = settings.get(f.name)
            if value is not None and not fits(value, f):
                raise InputError(f"config {str(file)!r}: {f.name} is {value!r:.80}: restore the file")
    refuse_links(tester)
    if not isinstance(settings.get("seed", 0), int):
        raise InputError(f"config {str(file)!r}: seed is {settings['seed']!r:.80}, not a number: restore the file")
    return settings


def _inherited(run: Mapping[str, Any]) -> dict[str, Any]:
    # Openings stay unnamed: those that a run held out of its own need its other settings too.
    return {
        **{key: value for key, value in run.items() if key in INHERITED and value is not None},
        "target": None if run.get("target") is None else [run["target"]],
        "baseline": run.get("baseline") or run.get("tester") or run.get("model_name_or_path"),
        "depth": run["tree_depth"],
    }


def _check_arms(also: Sequence[str]) -> None:
    names: list[str] = []
    for pair in also:
        name, equals, what = pair.partition("=")
        if not (name and equals and what):
            raise InputError(f"--also {pair!r}: give NAME=MODEL, NAME=FILE or NAME=FILE:COLUMN")
        if name in (*ARMS, *names):
            raise InputError(f"--also {pair!r}: {name!r} is another arm's name, choose a new one")
        names.append(name)
