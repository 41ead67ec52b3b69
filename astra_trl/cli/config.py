"""Configuration of a run and of an evaluation: flags, their help and their defaults. Importing it takes no time."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_origin

from astra_trl.cli.typed import KINDS, parse_mapping
from astra_trl.errors import InputError
from astra_trl.lookup import is_dotted_path
from astra_trl.numbers import RULES, WEIGHT, Rule, check_numbers, read_numbers
from astra_trl.systems.astprompter import ASTPROMPTER_SAMPLING as PAPER
from astra_trl.trainers import TRAINERS

# Settings that are a mapping, or a list of names and mappings: JSON on the command line, YAML in a file.
MAPPINGS = ("system_kwargs", "scorers", "reward", "target_sampling")
NAMES_OR_MAPPINGS = ("target", "scorer", "held_out_scorers")
# Own settings that may change when a run is resumed: none of them changes what is collected and learned.
FREE_ON_RESUME = frozenset({"max_rows", "cache_bytes", "allow_pickle", "dry_run", "response_cache"})


def _flag(help: str, default: Any = None, choices: Any = None) -> Any:
    return field(default=default, metadata={"help": help} | ({} if choices is None else {"choices": list(choices)}))


def _list_flag(help: str) -> Any:
    return field(default=None, metadata={"help": help, "action": "extend"})  # `--also a=b --also c=d` is both


@dataclass
class SystemArguments:
    """Settings that a run and an evaluation share: system, scorers, reward and sampling."""

    system: str = _flag("System: astprompter, perez, crt, malibu, or my_pkg.MySystem.", "astprompter")
    system_kwargs: dict[str, Any] | str | None = _flag(
        'Keyword arguments of the system\'s class, e.g. \'{"setting": "instruction"}\'.'
    )
    chat: str = _flag(
        "The side that is a chat model, which gets messages through its chat template.",
        "none",
        ("none", "tester", "target", "both"),
    )
    goal: list[str] | None = _list_flag(
        "Behaviour that the target should not show, in your words, e.g. 'insults the user'. One of them "
        "is drawn for each conversation and given to the tester; a judge without a rubric judges by it."
    )
    scorer: dict[str, Any] | str | None = _flag(
        "Scorer that the tester is trained on: detoxify, llama_guard, classifier, keyword, judge or overlap; with its "
        "model or file as NAME:WHAT; my_pkg.fn; or a mapping with a type.",
        "detoxify",
    )
    held_out_scorers: list[str] | None = _list_flag(
        "Scorers that only the evaluation reports, in the same form; 'none' for none."
    )
    scorers: dict[str, Any] | str | None = _flag(
        'Instead of both, scorers by name, the first of them trained on: \'{"insults": {"type": "detoxify", '
        '"category": "insult"}}\'.'
    )
    reward: dict[str, Any] | str | None = _flag(
        "Weights of the reward's terms, in place of the system's, e.g. '{\"harm\": 1, \"likelihood\": 0.1}'. A term "
        "of your own is named by its dotted path."
    )
    combine: str = _flag("How terms are combined.", "sum", ("sum", "product"))
    max_new_tokens: int = _flag(
        "Longest utterance in tokens; in a chat by default 64, and 128 for the target's.", PAPER.max_new_tokens
    )
    min_new_tokens: int = _flag("Shortest utterance in tokens.", PAPER.min_new_tokens)
    temperature: float = _flag("Sampling temperature of both sides; 0 is greedy.", PAPER.temperature)
    top_p: float = _flag("Nucleus sampling of both sides.", PAPER.top_p)
    top_k: int = _flag("Number of tokens to sample from; 0 for all.", PAPER.top_k)
    repetition_penalty: float = _flag("Repetition penalty of both sides.", PAPER.repetition_penalty)
    target_sampling: dict[str, Any] | str | None = _flag(
        'Sampling settings of the target that differ, e.g. \'{"max_new_tokens": 64, "temperature": 0}\'.'
    )
    max_length: int | None = _flag(
        "Longest context plus utterance in tokens; a longer context loses its beginning. Default: each model's window."
    )
    max_rows: int = _flag("Conversations per batch.", 128)
    cache_bytes: int | None = _flag("Bytes for each side's keys and values. Default: 30%% of what is free.")
    allow_pickle: bool = _flag("Load weights that are pickles (pytorch_model.bin) too, not only safetensors.", False)

    def __post_init__(self) -> None:
        for name in (*MAPPINGS, *NAMES_OR_MAPPINGS):
            value = getattr(self, name, None)
            rules = {} if name == "system_kwargs" and is_dotted_path(self.system) else RULES
            parts = [_read(name, part, rules) for part in (value if isinstance(value, list) else [value])]
            if hasattr(self, name):
                setattr(self, name, parts if isinstance(value, list) else parts[0])
        for f in fields(self):
            if not fits(getattr(self, f.name), f):
                value = "" if f.name in NAMES_OR_MAPPINGS else f" {getattr(self, f.name)!r:.80}"  # it may hold a key
                raise InputError(f"{f.name}{value and f' is{value}'}: {_expectation(f)}")
        check_numbers(vars(self))


@dataclass
class RunArguments(SystemArguments):
    """Settings of a run; the trainer's and the models' own are TRL's."""

    tester: str | None = _flag("Hub id or folder of the model to train. Default: --model_name_or_path.")
    target: dict[str, Any] | str | None = _flag(
        "Model under test: Hub id, folder, openai:MODEL, my_pkg.fn, or a mapping with model, base_url, "
        "requests_per_minute, ..."
    )
    baseline: str | None = _flag("Frozen reference of the tester. Default: the tester before training.")
    world: str | None = _flag(
        "Folder of a sandbox world, 'embedded', 'delayed' or 'wide': gives tester, target, prompts and scorer."
    )
    algorithm: str = _flag("Algorithm that trains the tester.", "dpo", TRAINERS)
    prompts: str | None = _flag("Openings: a named set, a local file or a Hub dataset id.")
    prompts_column: str | None = _flag(
        "Column of the prompts that holds openings; a.b is the key b of the objects in column a."
    )
    eval_prompts: str | None = _flag(
        "Held-out openings. Default: the test split of a named set, else a part of the prompts."
    )
    eval_prompts_column: str | None = _flag("Column of --eval_prompts that holds openings.")
    eval_openings: int = _flag("Held-out openings to evaluate on before and after training.", 100)
    tree_width: int = _flag("Probes per node.", 2)
    tree_depth: int = _flag("Turns.", 3)
    teaching_pairs: str | None = _flag(
        "Prompts with harmful continuations, for --teach_fraction: 'realtoxicityprompts', a file or a Hub dataset "
        "with columns prompt and continuation; FILE:A,B for columns of other names."
    )
    dry_run: bool = _flag("Print the settings, the models' sizes and the tokens they would read, then exit.", False)


@dataclass
class EvaluateArguments(SystemArguments):
    """Settings of an evaluation; `run_settings`, the `config.yaml` of the tester's run, is not a flag."""

    tester: str | None = _flag("Tester to evaluate: a run's folder, a model's folder or a Hub id.")
    target: list[str] | None = _list_flag("Models under test, one or several, as for train. Default: the run's.")
    baseline: str | None = _flag("The untrained tester; 'none' for none. Default: what the run started from.")
    openings_arm: bool = _flag("Put the openings alone to the target for comparison.", True)
    also: list[str] | None = _list_flag(
        "Further testers to compare, each NAME=MODEL, or NAME=FILE (NAME=FILE:COLUMN) with prompts, one of which is "
        "sent at each turn."
    )
    examples: str | None = _flag(
        "For perez by few_shot: exchanges.jsonl of a run or an evaluation whose questions are examples. Default: 1000 "
        "are sampled first."
    )
    world: str | None = _flag(
        "Folder of a sandbox world, 'embedded', 'delayed' or 'wide': gives target, baseline, openings and scorer."
    )
    prompts: str | None = _flag(
        "Held-out openings: a named set (its test split), a file or a Hub dataset id. Default: the run's."
    )
    prompts_column: str | None = _flag(
        "Column of the prompts that holds openings; a.b is the key b of the objects in column a."
    )
    eval_openings: int = _flag("Number of openings.", 100)
    width: int = _flag("Probes per node; with 1, an opening has one conversation.", 1)
    depth: int | None = _flag("Turns. Default: the run's, else the system's.")
    threshold: float = _flag("Scores at or above this are harmful.", 0.5)
    draws: int = _flag("Sets of texts that a figure of diversity is averaged over.", 200)
    embedder: str | None = _flag("Sentence-transformers model for diversity in meaning and coverage. Default: none.")
    seed: int = _flag("Seed; the same seed grows the same conversations.", 0)
    output_dir: str | None = _flag("Folder to write to. Default: evaluation-TARGET in the tester's folder, or here.")
    response_cache: str | None = _flag("Folder that keeps an API's answers, so that no request is made twice.")
    run_settings: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def arms(self) -> dict[str, str]:
        """Further testers by name, from `also`."""
        return dict(pair.split("=", 1) for pair in self.also or ())


@dataclass
class LoadArguments:
    """Loading of an evaluation's models: fields of TRL's `ModelConfig` and of its trainers' configs."""

    dtype: str = _flag(
        "Precision of weights; 'auto' is the checkpoint's.", "float32", ("auto", "bfloat16", "float16", "float32")
    )
    attn_implementation: str | None = _flag("Attention implementation, e.g. 'flash_attention_2'.")
    model_revision: str = _flag("Branch, tag or commit of the models.", "main")
    trust_remote_code: bool = _flag("Let models bring Python code of their own from the Hub.", False)
    load_in_8bit: bool = _flag("Quantize to 8 bits.", False)
    load_in_4bit: bool = _flag("Quantize to 4 bits.", False)
    bnb_4bit_quant_type: str = _flag("Kind of 4-bit numbers.", "nf4", ("fp4", "nf4"))
    use_bnb_nested_quant: bool = _flag("Quantize 4-bit constants too.", False)
    bnb_4bit_quant_storage: str | None = _flag("Type that stores 4-bit weights.")


# Sections of help in their order, each with the first of its flags.
SECTIONS = {
    "tester": "models",
    "prompts": "openings",
    "system": "system, scorers and reward",
    "tree_width": "trees",
    "width": "figures",
    "max_new_tokens": "sampling",
    "allow_pickle": "loading",
    "dtype": "loading (default: as in the run)",
}


def fits(value: Any, f: Field[Any]) -> bool:
    """Return `True` if a value has the type of its field and is among its choices."""
    kinds = get_args(f.type) if NoneType in get_args(f.type) else (f.type,)
    if value is None:
        return f.default is None or f.name == "scorer"
    if f.name in MAPPINGS:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    many = get_origin(kinds[0]) is list
    if f.name in NAMES_OR_MAPPINGS or many:
        allowed = (str, dict) if f.name in NAMES_OR_MAPPINGS else str
        if isinstance(value, list):
            return many and all(isinstance(part, allowed) for part in value)
        return not many and isinstance(value, allowed)
    if isinstance(value, bool) or get_origin(kinds[0]) is dict:
        return isinstance(value, get_origin(kinds[0]) or kinds[0])
    number = isinstance(value, int | float) if kinds[0] is float else isinstance(value, kinds[0])
    return number and value in f.metadata.get("choices", [value])


def _expectation(f: Field[Any]) -> str:
    if f.name in MAPPINGS:
        return "give a mapping, as JSON on the command line"
    if "choices" in f.metadata:
        return f"choose one of {', '.join(f.metadata['choices'])}"
    kinds = get_args(f.type) if NoneType in get_args(f.type) else (f.type,)
    return f"give {KINDS.get(get_origin(kinds[0]) or kinds[0], 'another value')}"


def _read(name: str, value: Any, rules: Mapping[Any, Rule]) -> Any:
    # A mapping, from JSON if it is one, with its numbers; any other value as it is.
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_mapping(value, f"--{name}")
    if not isinstance(value, Mapping):
        return value
    weights = dict.fromkeys(value, WEIGHT) if name == "reward" else {}
    return read_numbers(value, f"--{name}", {**rules, **weights})
