"""Flags and YAML files as arguments: those of a run, beside the scorers', TRL's and the models' own, and those of an
evaluation. TRL is imported where its own flags are asked for: help of the package's own ones is there at once."""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from astra_trl.backends.named import api_model, refuse_idle_address
from astra_trl.errors import InputError
from astra_trl.flags import (
    EVALUATE_GROUPS,
    EvaluateArguments,
    Groups,
    LoadArguments,
    RunArguments,
)
from astra_trl.sandbox import named_world
from astra_trl.scorers.named import ScorerArguments
from astra_trl.settings import fits, read_settings, run_settings
from astra_trl.systems.defaults import SYSTEMS, defaults_of
from astra_trl.trainers import TRAINERS, trainer_classes

if TYPE_CHECKING:
    from trl import ModelConfig

OWN_ARMS = ("tester", "baseline", "openings")
NUMBERS: dict[Any, str] = {int: "N", float: "X"}
METAVARS = {
    **dict.fromkeys(("tester", "target", "baseline", "embedder", "novelty_embedder", "gibberish_model"), "MODEL"),
    **dict.fromkeys(("prompts", "eval_prompts", "teaching_pairs"), "SOURCE"),
    **dict.fromkeys(("world", "output_dir", "detoxify_config_path", "response_cache"), "DIR"),
    **dict.fromkeys(("scorer", "held_out_scorers"), "SCORER"),
    **dict.fromkeys(("prompts_column", "detoxify_category"), "NAME"),
    **{"also": "NAME=WHAT", "detoxify_checkpoint": "FILE", "judge_base_url": "URL", "keywords": "WORD"},
    **{"goal": "TEXT", "examples": "FILE", "target_base_url": "URL"},
    **{"classifier_labels": "LABEL", "llama_guard_categories": "HAZARD"},
    **dict.fromkeys(("dtype", "scorer_dtype", "bnb_4bit_quant_storage"), "DTYPE"),
}


class FlagParser(argparse.ArgumentParser):
    """argparse with help of 80 columns and one line for what is wrong; `--tree-width` is `--tree_width`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, "allow_abbrev": False, **kwargs})

    def add_groups(self, groups: Groups, defaults: Mapping[str, Any] | None = None) -> None:
        """Adds flags of dataclasses' fields, with what help tells of their defaults; only those that are given will be
        in the parsed namespace."""
        for title, (cls, names) in groups.items():
            group, by_name = self.add_argument_group(title), {f.name: f for f in fields(cls)}
            for name in names:
                group.add_argument(f"--{name}", **_of_field(by_name[name], (defaults or {}).get(name)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(None if args is None else [underscored(arg) for arg in args], namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {InputError(message)} (see {self.prog} --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(80, shutil.get_terminal_size().columns) - 1)


def underscored(arg: str) -> str:
    """A flag as it is named here, where it was written with hyphens."""
    name, equals, value = arg.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else arg


def _of_field(f: Field[Any], default: Any = None) -> dict[str, Any]:
    # What add_argument takes for a field of type X, X | None or list[X] | None.
    (kind,) = [kind for kind in get_args(f.type) if kind is not NoneType] if NoneType in get_args(f.type) else [f.type]
    text, default = f.metadata["help"], f.default if default is None else default
    if not any(default is nothing for nothing in (None, MISSING, False)):
        text = text.partition(" Default:")[0] + f" Default: {str(default).lower() if kind is bool else default}."
    about: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        return {**about, "type": _truth, "nargs": "?", "const": True, "metavar": "BOOL"}
    if "choices" in f.metadata:
        return {**about, "choices": f.metadata["choices"]}
    if get_origin(kind) is list:
        return {**about, "nargs": "+", "action": "extend", "metavar": METAVARS[f.name]}
    return {**about, "type": kind, "metavar": METAVARS.get(f.name, NUMBERS.get(kind, "TEXT"))}


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "yes", "1")


def chosen(
    argv: Sequence[str], prog: str = "astra-trl train", defaults: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """The system and the algorithm that flags name, or else the file of `--config`, or else the defaults."""
    parser = FlagParser(prog, add_help=False)
    parser.add_groups({"": (RunArguments, ["system", "algorithm"])})
    parser.add_argument("--config")
    given, _ = parser.parse_known_args(list(argv))
    settings = {} if given.config is None else read_settings(given.config)
    settings = {**(defaults or {}), **settings}
    found = {**{key: value for key, value in settings.items() if key in ("system", "algorithm")}, **vars(given)}
    system, algorithm = found.get("system", "astprompter"), found.get("algorithm", "dpo")
    for name, value, known in (("system", system, SYSTEMS), ("algorithm", algorithm, TRAINERS)):
        if not isinstance(value, str) or value not in known:
            raise InputError(f"there is no {name} {value!r} ({given.config}): choose one of {', '.join(known)}")
    return system, algorithm


def run_parser(
    defaults: Mapping[str, Any], algorithm: str = "dpo", prog: str | None = None, system: str = "astprompter"
) -> Any:
    """TRL's parser with every flag of a run: the package's, the scorers', the algorithm's config's and the models'.

    Defaults are those given, over the system's, over the flags' own.
    """
    from trl import ModelConfig, TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            # argparse prints all of a page's flags instead.
            raise InputError(f"{message} (--help lists every flag)")

    config_class, _ = trainer_classes(algorithm)
    classes = [RunArguments, ScorerArguments, _without_run_arguments(config_class), ModelConfig]
    usage = "%(prog)s [--config FILE] [flags...]"
    parser = Parser(classes, prog=prog, usage=usage, allow_abbrev=False, formatter_class=_HelpOfAll)
    own = {**defaults_of(system, algorithm), "algorithm": algorithm, "system": system}
    unknown = parser.set_defaults_with_config(**{**own, **defaults})
    assert not unknown, unknown
    return parser


class _HelpOfAll(argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(80, shutil.get_terminal_size().columns) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # One spelling, and no longer than a line: TRL's flags have many choices.
        choices = " {" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        name = next(option for option in action.option_strings if option.startswith("--"))
        return f"{name}{choices if len(choices) < 50 else ''}"


def parse(
    defaults: Mapping[str, Any], argv: Sequence[str], algorithm: str = "dpo"
) -> "tuple[RunArguments, ScorerArguments, Any, ModelConfig]":
    """Arguments from flags, over those from `--config file.yaml`, over `defaults`; the third are the config of the
    algorithm's trainer."""
    system, _ = chosen(argv, defaults=defaults)
    parser = run_parser(defaults, algorithm, system=system)
    # TRL knows the path of a configuration as a flag's next part only.
    parts = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    try:
        args, scorer_args, training_args, model_args = parser.parse_args_and_config(parts)
    except (ValueError, OSError, TypeError, AttributeError) as error:  # the latter two of values of other types
        raise InputError(str(error)) from error
    for cls, given in ((RunArguments, args), (ScorerArguments, scorer_args)):
        for f in fields(cls):
            if not fits(getattr(given, f.name), f):
                raise InputError(f"{f.name}={getattr(given, f.name)!r:.80} is of another type than its flag takes")
    training_args.__class__, _ = trainer_classes(algorithm)  # which can be saved with a checkpoint
    if (args.system, args.algorithm) not in {(system, algorithm) for system in SYSTEMS}:
        raise InputError(
            f"this trains by {algorithm}, and system {args.system!r} with algorithm {args.algorithm!r} was asked for: "
            "start it with `astra-trl train`"
        )
    _check_method(args, algorithm)
    return args, scorer_args, training_args, model_args


def _check_method(args: "RunArguments", algorithm: str) -> None:
    # Of Perez et al.: sampling alone trains nothing, and supervised learning is one of the algorithms.
    method = "supervised" if algorithm == "sft" else "rl"
    if args.method in ("zero_shot", "few_shot"):
        raise InputError(
            f"method {args.method} trains nothing: sample with `astra-trl evaluate TESTER --system perez --method "
            f"{args.method}`"
        )
    if args.method not in (None, method):
        mend = "--algorithm sft" if args.method == "supervised" else "--algorithm ppo, grpo, rloo or dpo"
        raise InputError(f"method {args.method} is not what algorithm {algorithm} does: give {mend}")


def _without_run_arguments(config_class: Any) -> Any:
    # TRL's configs have fields of the same names for how probes are sampled: a run's flags decide, for both sides.
    shared = {f.name for f in fields(config_class) if f.init} & {f.name for f in fields(RunArguments)}
    hidden: list[Any] = [
        (f.name, f.type, field(default=f.default, init=False)) for f in fields(config_class) if f.name in shared
    ]
    return make_dataclass(config_class.__name__, hidden, bases=(config_class,))


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
    settings = {**({} if path is None else _from_file(path)), **given}
    if settings.get("tester") is None:
        parser.error("no tester: give a run's folder, a model's folder or a Hub id")
    run = run_settings(settings["tester"])
    system = settings.get("system") or run.get("system") or "astprompter"
    own = {**SYSTEMS[system], "depth": SYSTEMS[system].get("tree_depth")}
    settings = {**(_defaults_of_run(run) or own), **settings, "run_settings": run}
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
    if args.target_base_url != run.get("target_base_url"):  # that of the run may be idle here
        refuse_idle_address(args, *settings["target"])
    return (
        args,
        ScorerArguments(**_fields_of(ScorerArguments, settings)),
        LoadArguments(**_fields_of(LoadArguments, settings)),
    )


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
    own -= {"tester", "prompts", "prompts_column", "output_dir", "allow_pickle", "trust_remote_code"}
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
