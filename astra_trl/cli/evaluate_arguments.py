"""Flags, YAML files and a run's settings as the arguments of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from astra_trl.backends.api.keys import refuse_borrowed_address
from astra_trl.backends.named import api_model, refuse_idle_address
from astra_trl.cli.arguments import FlagParser
from astra_trl.cli.flags import EVALUATE_GROUPS, EvaluateArguments, LoadArguments
from astra_trl.cli.settings import read_settings, run_settings
from astra_trl.errors import InputError
from astra_trl.sandbox import named_world
from astra_trl.scorers.named import ScorerArguments
from astra_trl.systems.defaults import SYSTEMS

OWN_ARMS = ("tester", "baseline", "openings")


def evaluate_parser() -> FlagParser:
    """The parser of `astra-trl evaluate`; only what is given is in its namespace."""
    parser = FlagParser(
        "astra-trl evaluate",
        usage="astra-trl evaluate TESTER [--config FILE] [flags...]",
        description="Measure a tester on held-out openings, beside the untrained one and the\nopenings alone.",
        epilog="""\
A run's folder brings its own settings: flags win over the file of --config,
which wins over the run's config.yaml.

examples:
  astra-trl evaluate runs/dpo_gpt2
  astra-trl evaluate runs/dpo_gpt2 --target openai-community/gpt2-large \\
      --also perez=some/tester --also advbench=prompts.txt
""",
    )
    parser.add_argument("folder", nargs="?", metavar="TESTER", help="the same as --tester")
    parser.add_argument("--config", metavar="FILE", help="a YAML file with any of these flags")
    parser.add_groups(EVALUATE_GROUPS)
    return parser


def parse_evaluate(argv: Sequence[str]) -> tuple[EvaluateArguments, ScorerArguments, LoadArguments]:
    """Arguments of an evaluation from flags, over those from `--config file.yaml`, over the settings of the run that
    trained the tester, where it is a run's folder."""
    parser = evaluate_parser()
    given = vars(parser.parse_args(list(argv)))
    folder, path = given.pop("folder"), given.pop("config")
    if folder is not None and given.setdefault("tester", folder) != folder:
        parser.error(f"two testers, {folder!r} and {given['tester']!r}: give one")
    asked = {**({} if path is None else _from_file(path)), **given}
    if asked.get("tester") is None:
        parser.error("no tester: give a run's folder, a model's folder or a Hub id")
    run = run_settings(asked["tester"])
    system = asked.get("system") or run.get("system") or "astprompter"
    own = {**SYSTEMS[system], "depth": SYSTEMS[system].get("tree_depth")}
    settings = {**(_defaults_of_run(run) or own), **asked, "run_settings": run}
    if settings.get("method") not in (None, "zero_shot", "few_shot"):
        settings["method"] = "zero_shot"  # the others train, and sample as this one does
    if (world := named_world(settings.get("world"))) is not None:
        for name, value in (("target", [world.target]), ("baseline", world.tester)):
            settings[name] = settings.get(name) or value
    elif not run and settings.get("prompts") is None and system != "perez":
        raise InputError("no prompts: give --prompts with a named set, a file or a Hub dataset id")
    if not settings.get("target"):
        raise InputError("no target: give a Hub id or folder with --target")
    if settings.get("output_dir") is None and Path(settings["tester"]).is_dir():
        # Not the run's own: what that measured was not loaded from this folder.
        against = "+".join(Path(api_model(target) or target).name for target in settings["target"])
        settings["output_dir"] = str(Path(settings["tester"]) / f"evaluation-{against}")
    _check_arms(settings.get("also") or ())
    args = EvaluateArguments(**_fields_of(EvaluateArguments, settings))
    scorer_args = ScorerArguments(**_fields_of(ScorerArguments, settings))
    if args.target_base_url != run.get("target_base_url"):  # that of the run may be idle here
        refuse_idle_address(args, *settings["target"])
    called = {
        "target_base_url": any(api_model(target) for target in settings["target"]),
        "judge_base_url": any(spec.startswith("judge:") for spec in (scorer_args.scorer, *scorer_args.held_out)),
    }
    for flag, used in called.items():
        if used and flag not in asked:
            refuse_borrowed_address(settings.get(flag), flag)
    return args, scorer_args, LoadArguments(**_fields_of(LoadArguments, settings))


def _fields_of(cls: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: settings[f.name] for f in fields(cls) if f.name in settings}


def _from_file(path: str) -> dict[str, Any]:
    # As if its lines were flags, so that a number in quotes is one and what is no flag is refused.
    settings = read_settings(path)
    if "tree_depth" in settings:
        raise InputError(f"config {path!r} is a run's: give the run's folder as the tester, and leave --config out")
    parser = _FileParser(path, add_help=False)
    parser.add_groups(EVALUATE_GROUPS)
    classes = (EvaluateArguments, ScorerArguments, LoadArguments)
    optional = {f.name for cls in classes for f in fields(cls) if f.default is None}
    nothing = {key: None for key, value in settings.items() if value is None and key in optional}
    flags = [
        f"--{key}={part}"
        for key, value in settings.items()
        if key not in nothing
        for part in (value if isinstance(value, list) else [value])
    ]
    return {**nothing, **vars(parser.parse_args(flags))}


class _FileParser(FlagParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"config {self.prog!r}: {message}")


def _defaults_of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    # What an evaluation takes over, where it has a flag of the same name or of another one. Openings stay unnamed:
    # those that a run held out of its own need its other settings too.
    if not run:
        return {}
    own = {f.name for cls in (EvaluateArguments, ScorerArguments, LoadArguments) for f in fields(cls)}
    # A folder may be another's: what it would allow, this command has to allow by itself.
    own -= {"tester", "prompts", "prompts_column", "output_dir", "response_cache", "allow_pickle", "trust_remote_code"}
    same = {key: value for key, value in run.items() if key in own}
    return {
        **same,
        "target": None if run.get("target") is None else [run["target"]],
        "baseline": run.get("baseline") or run.get("tester") or run.get("model_name_or_path"),
        "depth": run["tree_depth"],
    }


def _check_arms(also: Sequence[str]) -> None:
    names: list[str] = []
    for pair in also:
        name, equals, what = pair.partition("=")
        if not (name and equals and what):
            raise InputError(f"--also {pair!r}: give NAME=MODEL, or NAME=FILE with prompts")
        if name in (*OWN_ARMS, *names):
            raise InputError(f"--also {pair!r}: {name!r} is another arm's name, choose one of its own")
        names.append(name)
