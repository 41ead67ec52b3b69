"""Arguments of a run: from flags, YAML files, recipes and systems."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from astra_trl.cli.config import RunArguments
from astra_trl.cli.lengths import set_chat_lengths
from astra_trl.cli.parser import FlagParser, Parser
from astra_trl.cli.settings_file import SettingsFile, read_settings_file
from astra_trl.cli.trust import refuse_switched_on
from astra_trl.cli.unused_flags import refuse_unused
from astra_trl.errors import InputError, MissingExtra
from astra_trl.systems import system_class
from astra_trl.trainers import TRAINERS, trainer_classes

if TYPE_CHECKING:
    from trl import ModelConfig


@dataclass(frozen=True)
class Choice:
    """The system and the algorithm of a run, and the file of `--config`."""

    system: str
    algorithm: str
    file: SettingsFile


def choose(argv: Sequence[str], defaults: Mapping[str, Any] = {}, prog: str = "astra-trl train") -> Choice:
    """Return the system and the algorithm from the flags, or else from the file of `--config`, or else the defaults.

    The file is read here, once. What the other flags are, and their defaults, depends on system and algorithm.
    """
    parser = FlagParser(prog, add_help=False)
    for name in ("config", "system", "algorithm"):
        parser.add_argument(f"--{name}")
    flags, _ = parser.parse_known_args(argv)
    file = read_settings_file(flags.config)
    settings = {**defaults, **file.settings}
    system = flags.system or settings.get("system") or "astprompter"
    algorithm = flags.algorithm or settings.get("algorithm") or "dpo"
    if not isinstance(system, str):
        raise InputError(f"system is {system!r:.80}: give a name")
    if algorithm not in TRAINERS:
        raise InputError(f"unknown algorithm {algorithm!r}: choose one of {', '.join(TRAINERS)}")
    return Choice(system, algorithm, file)


def train_parser(prog: str, algorithm: str | None = None, **kwargs: Any) -> Parser:
    """Return the parser of a run: with an algorithm all flags, without one the package's own, for help."""
    if algorithm is None:
        return Parser([RunArguments], prog, **kwargs)
    from trl import ModelConfig

    config_class, _ = trainer_classes(algorithm)
    explain = partial(_explain, algorithm)
    return Parser([RunArguments, _without_own_fields(config_class), ModelConfig], prog, explain, **kwargs)


def _explain(algorithm: str, name: str) -> str | None:
    # A message about a setting of another algorithm.
    for other in TRAINERS:
        with suppress(MissingExtra):  # PPO's, with a newer TRL
            if other != algorithm and name in {f.name for f in fields(trainer_classes(other)[0])}:
                return f"{name} is a setting of --algorithm {other}, and this run trains by {algorithm}"
    return None


def help_parser(prog: str, sandbox: bool, algorithm: str | None) -> Parser:
    """Return the parser that prints the help of a run: with an algorithm that of all flags."""
    description = (
        "Train the sandbox's tiny tester, about a minute on a laptop's CPU. Flags are\nthose of `astra-trl train`; "
        "the last line printed is a summary as JSON."
        if sandbox
        else "Train a tester to find what makes a target misbehave. Flags win over the file of\n--config, which wins "
        "over the defaults; a run's own config.yaml starts it again."
    )
    examples = (
        f"""\
  {prog}
  {prog} --algorithm grpo --num_train_epochs 5
  {prog} --world my_world --dry_run"""
        if sandbox
        else f"""\
  {prog} --tester openai-community/gpt2 \\
      --target openai-community/gpt2 --prompts convokit-reddit \\
      --scorer detoxify --output_dir runs/gpt2
  {prog} --algorithm grpo --config run.yaml --dry_run
  {prog} --config runs/gpt2/config.yaml --output_dir runs/again
  {prog} --num_processes 4 --config run.yaml"""
    )
    epilog = f"""\
Every field of TRL's config for the algorithm is a flag too (--output_dir,
--num_train_epochs, which are rounds, --trees_per_round, --learning_rate,
--beta, --report_to, --push_to_hub, ...), and every field of its ModelConfig
(--dtype, --use_peft, --lora_r, --load_in_4bit, ...): --help_all lists them.

Mappings are JSON here and YAML in a file; docs/configuration.md lists them.

With any flag of `accelerate launch` (--num_processes, --mixed_precision,
--config_file, ...) it starts the run in as many processes;
--accelerate_config takes such a file, or the name of one that TRL brings
(multi_gpu, fsdp2, zero3, ...).

examples:
{examples}
"""
    parser = train_parser(prog, algorithm, description=description, epilog=epilog)
    parser.add_argument("--help_all", action="store_true", help="list every flag, TRL's too, and exit")
    return parser


def parse(
    defaults: Mapping[str, Any], argv: Sequence[str], parser: Parser | None = None, choice: Choice | None = None
) -> tuple[RunArguments, Any, "ModelConfig"]:
    """Parse the arguments of a run: its own, the trainer's config and the models'.

    Flags win over the file of `--config`, which wins over `defaults` (a recipe's), over the system's defaults, over
    the dataclasses'. `parser` and `choice` are those of [`train_parser`] and [`choose`], if there are any yet.

    Raises:
        InputError: a setting is unknown, of the wrong type or without effect, or settings do not go together.
    """
    choice = choice or choose(argv, defaults)
    system, algorithm, file = choice.system, choice.algorithm, choice.file
    if defaults.get("algorithm", algorithm) != algorithm:
        raise InputError(f"this recipe trains by {defaults['algorithm']}: use `astra-trl train` for {algorithm}")
    parser = parser or train_parser("astra-trl train", algorithm)
    chosen_class = system_class(system)
    own = chosen_class.default_settings(algorithm)
    parser.set_defaults_with_config(**{**own, **defaults})  # for help
    given = parser.parse_given(argv)
    given.pop("config", None)
    refuse_switched_on(file.path, file.settings, given)
    in_file = parser.settings_in(file)
    layers: Any = (own, defaults, in_file, given)
    settings = {key: value for layer in layers for key, value in layer.items()}
    settings |= {"system": system, "algorithm": algorithm}
    args, training_args, model_args = parser.fill(settings)
    set_chat_lengths(args, {**defaults, **in_file, **given})
    called = {} if file.is_resolved else {name: f"config {file.path!r}: {name}" for name in in_file}
    called |= {name: f"--{name}" for name in given}
    refuse_unused(called, args, training_args, model_args)
    training_args.__class__, _ = trainer_classes(algorithm)  # which can be saved with a checkpoint
    chosen_class.check_training(algorithm, args.system_kwargs or {})
    return args, training_args, model_args


def _without_own_fields(config_class: Any) -> Any:
    # TRL's configs have fields of the same names for how probes are sampled: a run's flags decide, for both sides.
    shared = {f.name for f in fields(config_class) if f.init} & {f.name for f in fields(RunArguments)}
    hidden: list[Any] = [
        (f.name, f.type, field(default=f.default, init=False)) for f in fields(config_class) if f.name in shared
    ]
    return make_dataclass(config_class.__name__, hidden, bases=(config_class,))
