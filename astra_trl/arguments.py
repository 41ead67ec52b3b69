"""Every flag of a run: what is tested and how trees grow, beside the scorers', TRL's and the models' own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from astra_trl.errors import InputError
from astra_trl.scorers.named import ScorerArguments
from astra_trl.trainers import trainer_classes


@dataclass
class RunArguments:
    """What a run tests and how it grows trees; the trainer's and the models' own settings are TRL's."""

    tester: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the model to train. Default: --model_name_or_path."}
    )
    target: str | None = field(default=None, metadata={"help": "Hub id or folder of the model under test."})
    baseline: str | None = field(
        default=None, metadata={"help": "Frozen reference of the tester. Default: the tester before training."}
    )
    world: str | None = field(
        default=None,
        metadata={"help": "A sandbox world's folder, or 'embedded': gives tester, target, prompts and scorer."},
    )
    prompts: str | None = field(
        default=None, metadata={"help": "Openings: a named set, a local file or a Hub dataset id."}
    )
    prompts_column: str | None = field(default=None, metadata={"help": "Column of the prompts that holds openings."})
    eval_prompts: str | None = field(
        default=None,
        metadata={"help": "Held-out openings. Default: the test split of a named set, else a part of the prompts."},
    )
    eval_openings: int = field(default=100, metadata={"help": "Held-out openings to measure before and after on."})
    tree_width: int = field(default=2, metadata={"help": "Probes per node."})
    tree_depth: int = field(default=3, metadata={"help": "Turns."})
    probe_and_response_weight: float = field(default=0.5, metadata={"help": "Reward weight of probe + response harm."})
    likelihood_weight: float = field(default=0.1, metadata={"help": "Reward weight of the probe's likelihood."})
    probe_weight: float = field(
        default=0.0,
        metadata={"help": "Reward weight of the probe's own harm; below 0 it is penalised."},
    )
    length_weight: float = field(default=0.0, metadata={"help": "Reward weight of the probe's length in tokens."})
    non_repeating_weight: float = field(
        default=0.0, metadata={"help": "Reward weight of the share of the probe that was not said before."}
    )
    combine: str = field(
        default="sum", metadata={"help": "How reward terms are combined.", "choices": ["sum", "product"]}
    )
    credit: str = field(
        default="immediate",
        metadata={
            "help": "What of a tree's rewards an exchange gets credit for: its own, or with 'backup' those that "
            "follow too.",
            "choices": ["immediate", "backup"],
        },
    )
    credit_gamma: float = field(default=0.9, metadata={"help": "Discount of each later turn, with --credit backup."})
    teaching_pairs: str | None = field(
        default=None,
        metadata={
            "help": "Prompts with harmful continuations, for --teach_fraction: 'realtoxicityprompts', a file or a Hub "
            "dataset with columns prompt and continuation."
        },
    )
    max_new_tokens: int = field(default=24, metadata={"help": "Longest utterance in tokens."})
    min_new_tokens: int = field(default=2, metadata={"help": "Shortest utterance in tokens."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of both sides; 0 is greedy."})
    top_p: float = field(default=0.7, metadata={"help": "Nucleus of both sides."})
    top_k: int = field(default=0, metadata={"help": "Tokens sampled from; 0 is all."})
    repetition_penalty: float = field(default=1.1, metadata={"help": "Repetition penalty of both sides."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest context plus utterance in tokens; a longer context loses its oldest. Default: each "
            "model's window."
        },
    )
    max_rows: int = field(default=128, metadata={"help": "Conversations that pass through a model at a time."})
    cache_bytes: int | None = field(
        default=None,
        metadata={"help": "Bytes for each side's keys and values. Default: 35%% of what a GPU has free."},
    )


class _Parser(TrlParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message} (--help lists every flag)")  # argparse prints all of a page's flags instead


def parse(
    defaults: Mapping[str, Any], argv: Sequence[str], algorithm: str = "dpo"
) -> tuple[RunArguments, ScorerArguments, Any, ModelConfig]:
    """Arguments from flags, over those from `--config file.yaml`, over `defaults`; the third are the config of the
    algorithm's trainer."""
    config_class, _ = trainer_classes(algorithm)
    parser = _Parser([RunArguments, ScorerArguments, _without_run_arguments(config_class), ModelConfig])
    unknown = parser.set_defaults_with_config(**defaults)
    assert not unknown, unknown
    try:
        args, scorer_args, training_args, model_args = parser.parse_args_and_config(list(argv))
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(" ".join(str(error).split())) from error
    training_args.__class__ = config_class  # which can be saved with a checkpoint
    return args, scorer_args, training_args, model_args


def _without_run_arguments(config_class: Any) -> Any:
    # TRL's configs have fields of the same names for how probes are sampled: a run's flags decide, for both sides.
    shared = {f.name for f in fields(config_class) if f.init} & {f.name for f in fields(RunArguments)}
    hidden: list[Any] = [
        (f.name, f.type, field(default=f.default, init=False)) for f in fields(config_class) if f.name in shared
    ]
    return make_dataclass(config_class.__name__, hidden, bases=(config_class,))
