"""Arguments of a run: from flags, YAML files, recipes and systems."""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

from astra_trl.cli.config import RunArguments
from astra_trl.cli.parser import Parser, file_settings, last_value, read_settings
from astra_trl.errors import InputError
from astra_trl.systems import system_class
from astra_trl.trainers import TRAINERS, trainer_classes

if TYPE_CHECKING:
    from trl import ModelConfig


def choose(argv: Sequence[str], defaults: Mapping[str, Any] = {}) -> tuple[str, str]:
    """Return the system and the algorithm from the flags, or else from the file of `--config`, or else the defaults.

    What the other flags are, and their defaults, depends on both.
    """
    path = last_value(argv, "config")
    settings = {**defaults, **({} if path is None else read_settings(path))}
    system = last_value(argv, "system") or settings.get("system") or "astprompter"
    algorithm = last_value(argv, "algorithm") or settings.get("algorithm") or "dpo"
    if not isinstance(system, str):
        raise InputError(f"system is {system!r:.80}: give a name")
    if algorithm not in TRAINERS:
        raise InputError(f"there is no algorithm {algorithm!r}: choose one of {', '.join(TRAINERS)}")
    return system, algorithm


def train_parser(prog: str, algorithm: str | None = None, **kwargs: Any) -> Parser:
    """Return the parser of a run: with an algorithm all flags, without one the package's own, for help."""
    if algorithm is None:
        return Parser([RunArguments], prog, **kwargs)
    from trl import ModelConfig

    config_class, _ = trainer_classes(algorithm)
    return Parser([RunArguments, _without_own_fields(config_class), ModelConfig], prog, **kwargs)


def parse(
    defaults: Mapping[str, Any], argv: Sequence[str], prog: str = "astra-trl train"
) -> tuple[RunArguments, Any, "ModelConfig"]:
    """Parse the arguments of a run: its own, the trainer's config and the models'.

    Flags win over the file of `--config`, which wins over `defaults` (a recipe's), over the system's defaults, over
    the dataclasses'.

    Raises:
        InputError: a setting is unknown or of the wrong type, or settings do not go together.
    """
    system, algorithm = choose(argv, defaults)
    if defaults.get("algorithm", algorithm) != algorithm:
        raise InputError(f"this recipe trains by {defaults['algorithm']}: use `astra-trl train` for {algorithm}")
    parser = train_parser(prog, algorithm)
    own = system_class(system).default_settings(algorithm)
    parser.set_defaults_with_config(**{**own, **defaults})  # for help
    given = parser.given(argv)
    path = given.pop("config", None)
    layers: Any = (own, defaults, file_settings(path), given)
    settings = {key: value for layer in layers for key, value in layer.items()}
    settings |= {"system": system, "algorithm": algorithm}
    args, training_args, model_args = parser.filled(settings, f"config {path!r}" if path else "settings")
    training_args.__class__, _ = trainer_classes(algorithm)  # which can be saved with a checkpoint
    system_class(system).check_training(algorithm, args.system_kwargs or {})
    return args, training_args, model_args


def _without_own_fields(config_class: Any) -> Any:
    # TRL's configs have fields of the same names for how probes are sampled: a run's flags decide, for both sides.
    shared = {f.name for f in fields(config_class) if f.init} & {f.name for f in fields(RunArguments)}
    hidden: list[Any] = [
        (f.name, f.type, field(default=f.default, init=False)) for f in fields(config_class) if f.name in shared
    ]
    return make_dataclass(config_class.__name__, hidden, bases=(config_class,))
