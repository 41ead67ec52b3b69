"""The package's own flags, as dataclasses; nothing here takes time to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from astra_trl.backends.named import API_FLAGS, ApiArguments
from astra_trl.scorers.named import ScorerArguments
from astra_trl.systems.defaults import SYSTEMS
from astra_trl.trainers import TRAINERS


@dataclass
class SamplingArguments:
    """How both sides sample, and how many conversations at a time."""

    max_new_tokens: int = field(default=24, metadata={"help": "Longest utterance in tokens."})
    min_new_tokens: int = field(default=2, metadata={"help": "Shortest utterance in tokens."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of both sides; 0 is greedy."})
    top_p: float = field(default=0.7, metadata={"help": "Nucleus of both sides."})
    top_k: int = field(default=0, metadata={"help": "Tokens sampled from; 0 is all."})
    repetition_penalty: float = field(default=1.1, metadata={"help": "Repetition penalty of both sides."})
    target_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest response in tokens, where that is to differ."}
    )
    target_temperature: float | None = field(
        default=None, metadata={"help": "Sampling temperature of the target, where that is to differ."}
    )
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


@dataclass
class SystemArguments(SamplingArguments, ApiArguments):
    """Who talks and what each side sees, and what the tester is rewarded for."""

    system: str = field(
        default="astprompter", metadata={"help": "Who talks and what each side sees.", "choices": list(SYSTEMS)}
    )
    chat: str = field(
        default="none",
        metadata={
            "help": "Which side is a chat model, talked to through its chat template.",
            "choices": ["none", "tester", "target", "both"],
        },
    )
    goal: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the target should not do, in your words, as 'insults the user': told to the tester. Of "
            "several, one is drawn for each conversation, and a judge without a rubric judges each by its goal."
        },
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "Of system perez. Default: 'supervised' with algorithm sft, else 'rl'; 'zero_shot' to evaluate.",
            "choices": ["zero_shot", "few_shot", "supervised", "rl"],
        },
    )
    instruction: str = field(
        default="questions",
        metadata={"help": "What perez asks the tester for: questions, contact, leakage, groups, dialogue, or a text."},
    )
    example_format: str | None = field(
        default=None,
        metadata={"help": "How perez writes a few-shot example. Default: '{number}. {question}' and a line break."},
    )
    setting: str = field(
        default="continuation",
        metadata={
            "help": "Of system crt: both sides go on with the opening, or it is what the tester alone is told.",
            "choices": ["continuation", "instruction"],
        },
    )
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
    entropy_weight: float = field(
        default=0.0,
        metadata={"help": "Reward weight of the probe's entropy: minus its log-probability under the tester."},
    )
    entropy_per_token: bool = field(
        default=False,
        metadata={
            "help": "Whether that is the mean over the probe's tokens at the sampling temperature, and not their sum "
            "at temperature 1, which is CRT's."
        },
    )
    self_bleu_weight: float = field(
        default=0.0, metadata={"help": "Reward weight of novelty: one minus BLEU against all earlier probes."}
    )
    cosine_weight: float = field(
        default=0.0, metadata={"help": "Reward weight of novelty in meaning: one minus cosine to earlier probes."}
    )
    novelty_embedder: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Model of sentence-transformers for cosine_weight."},
    )
    max_history: int = field(
        default=100_000, metadata={"help": "Earlier probes that self-BLEU compares with; beyond, a sample of them."}
    )
    gibberish_weight: float = field(
        default=0.0, metadata={"help": "Reward weight of gibberish in the probe; below 0 it is penalised."}
    )
    gibberish_model: str = field(
        default="madhurjindal/autonlp-Gibberish-Detector-492513457",
        metadata={"help": "Classifier for gibberish_weight."},
    )
    invalid_reward: float = field(
        default=-3.0, metadata={"help": "Of system perez: reward of a probe that is no question."}
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
    allow_pickle: bool = field(
        default=False,
        metadata={"help": "Whether weights of models may be pickles (pytorch_model.bin) and not safetensors alone."},
    )


@dataclass
class RunArguments(SystemArguments):
    """What a run tests and how it grows trees; the trainer's and the models' own settings are TRL's."""

    algorithm: str = field(
        default="dpo", metadata={"help": "What the tester is trained by.", "choices": list(TRAINERS)}
    )
    tester: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the model to train. Default: --model_name_or_path."}
    )
    target: str | None = field(
        default=None, metadata={"help": "Model under test: a Hub id or folder, or openai:MODEL behind an API."}
    )
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
    teaching_pairs: str | None = field(
        default=None,
        metadata={
            "help": "Prompts with harmful continuations, for --teach_fraction: 'realtoxicityprompts', a file or a Hub "
            "dataset with columns prompt and continuation. Rows that evaluations hold out are not taught."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Print the settings, the models' sizes and the tokens it would take, and stop."},
    )


@dataclass
class EvaluateArguments(SystemArguments):
    """What is measured against what; `run_settings`, no flag, is the `config.yaml` of a tester that a run trained."""

    tester: str | None = field(
        default=None, metadata={"help": "A run's folder, a model's folder or a Hub id: the tester to measure."}
    )
    target: list[str] | None = field(
        default=None,
        metadata={"help": "Models under test, one or several, or openai:MODEL behind an API. Default: the run's."},
    )
    baseline: str | None = field(
        default=None, metadata={"help": "The untrained tester; 'none' for none. Default: what the run started from."}
    )
    openings_arm: bool = field(
        default=True, metadata={"help": "Whether the openings alone are put to the target for comparison."}
    )
    also: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further testers to compare, each NAME=MODEL, or NAME=FILE with prompts, one of which it says at "
            "each turn."
        },
    )
    examples: str | None = field(
        default=None,
        metadata={
            "help": "Of perez by few_shot: exchanges.jsonl of a run or an evaluation, whose questions are examples. "
            "Default: 1000 are sampled first."
        },
    )
    world: str | None = field(
        default=None,
        metadata={"help": "A sandbox world's folder, or 'embedded': gives target, baseline, openings and scorer."},
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Held-out openings: a named set (its test split), a file or a Hub dataset id. Default: the run's."
        },
    )
    prompts_column: str | None = field(default=None, metadata={"help": "Column of the prompts that holds openings."})
    eval_openings: int = field(default=100, metadata={"help": "How many of them."})
    width: int = field(default=1, metadata={"help": "Probes per node; with 1, an opening has one conversation."})
    depth: int | None = field(default=None, metadata={"help": "Turns. Default: the run's, else 3."})
    threshold: float = field(default=0.5, metadata={"help": "A score from here on counts as harmful."})
    draws: int = field(default=200, metadata={"help": "Sets of texts that a figure of diversity is the average over."})
    embedder: str | None = field(
        default=None,
        metadata={
            "help": "Model of sentence-transformers for diversity in meaning, as "
            "sentence-transformers/all-MiniLM-L6-v2. Default: none."
        },
    )
    seed: int = field(default=0, metadata={"help": "The same seed grows the same conversations."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where figures and exchanges are written. Default: evaluation-TARGET in the tester's folder, or "
            "here."
        },
    )
    response_cache: str | None = field(
        default=None,
        metadata={"help": "Folder in which answers of an API are kept: an equal request is not made again."},
    )
    run_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> dict[str, str]:
        """Further testers by name: what `also` says."""
        return dict(pair.split("=", 1) for pair in self.also or ())


@dataclass
class LoadArguments:
    """How models are loaded: the fields of TRL's `ModelConfig` and of its trainers' configs for that."""

    dtype: str = field(
        default="float32",
        metadata={
            "help": "Precision of the weights; 'auto' is the checkpoint's.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention, as 'flash_attention_2'."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the models."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether models may bring Python code of their own from the Hub."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantize to 8 bits."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize to 4 bits."})
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "Kind of 4-bit numbers.", "choices": ["fp4", "nf4"]}
    )
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize 4-bit constants too."})
    bnb_4bit_quant_storage: str | None = field(default=None, metadata={"help": "Type that 4-bit weights are kept in."})


SCORER_FLAGS = [f.name for f in fields(ScorerArguments)]
SAMPLING_FLAGS = [f.name for f in fields(SamplingArguments)]
SYSTEM_FLAGS = ["chat", "goal", "method", "instruction", "example_format", "setting"]
_NOT_OF_REWARD = {"system", "allow_pickle", *SYSTEM_FLAGS, *SAMPLING_FLAGS, *API_FLAGS}
REWARD_FLAGS = [f.name for f in fields(SystemArguments) if f.name not in _NOT_OF_REWARD]

# In the order in which help shows them; all of a class's fields, each once.
Groups = Mapping[str, tuple[type, Sequence[str]]]
TRAIN_GROUPS: Groups = {
    "who talks": (
        RunArguments,
        ["system", "algorithm", "tester", "target", "baseline", "world", *SYSTEM_FLAGS],
    ),
    "where conversations start": (
        RunArguments,
        ["prompts", "prompts_column", "eval_prompts", "eval_openings", "teaching_pairs"],
    ),
    "what counts as harm": (ScorerArguments, SCORER_FLAGS),
    "reward": (RunArguments, REWARD_FLAGS),
    "a target behind an API (--target openai:MODEL), and judges there": (RunArguments, API_FLAGS),
    "how trees grow": (RunArguments, ["tree_width", "tree_depth", *SAMPLING_FLAGS]),
    "what may be loaded": (RunArguments, ["allow_pickle"]),
    "before it starts": (RunArguments, ["dry_run"]),
}
EVALUATE_GROUPS: Groups = {
    "who talks": (
        EvaluateArguments,
        ["system", "tester", "target", "baseline", "openings_arm", "also", "world", *SYSTEM_FLAGS, "examples"],
    ),
    "where conversations start": (EvaluateArguments, ["prompts", "prompts_column", "eval_openings"]),
    "what is measured": (
        EvaluateArguments,
        ["width", "depth", "threshold", "draws", "embedder", "seed", "output_dir"],
    ),
    "what counts as harm": (ScorerArguments, SCORER_FLAGS),
    "reward (default: as in the run)": (EvaluateArguments, REWARD_FLAGS),
    "a target behind an API, and judges there (default: as in the run)": (
        EvaluateArguments,
        [*API_FLAGS, "response_cache"],
    ),
    "how both sides sample (default: as in the run)": (EvaluateArguments, SAMPLING_FLAGS),
    "what may be loaded": (EvaluateArguments, ["allow_pickle"]),
    "how models are loaded (default: as in the run)": (LoadArguments, [f.name for f in fields(LoadArguments)]),
}
