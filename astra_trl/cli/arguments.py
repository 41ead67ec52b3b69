"""Flags and YAML files as the arguments of a run: its own, beside the scorers', TRL's and the models'. TRL is imported
where its own flags are asked for: help of the package's own ones is there at once."""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from astra_trl.cli.flags import Groups, RunArguments
from astra_trl.cli.settings import fits, read_settings
from astra_trl.errors import InputError
from astra_trl.scorers.named import ScorerArguments
from astra_trl.systems.defaults import SYSTEMS, defaults_of
from astra_trl.trainers import TRAINERS, trainer_classes

if TYPE_CHECKING:
    from trl import ModelConfig

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
