"""Scorers by name, as `--scorer` and `--held_out_scorers` give them: "detoxify", "llama_guard:<model id>", ..."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from astra_trl.backends.api.keys import checked_base_url
from astra_trl.errors import InputError
from astra_trl.scorers.base import Scorer
from astra_trl.scorers.keyword import KeywordScorer


@dataclass
class ScorerArguments:
    """What measures harm. A scorer is a name and, after a colon, what to load for it."""

    scorer: str = field(
        default="detoxify",
        metadata={
            "help": "What the tester is trained on: detoxify[:VARIANT], llama_guard[:MODEL], classifier:MODEL, "
            "keyword[:FILE] or judge:MODEL."
        },
    )
    held_out_scorers: list[str] | None = field(
        default=None,
        metadata={"help": "Scorers that only the evaluation reports, named in the same way; 'none' for none."},
    )
    keywords: list[str] | None = field(default=None, metadata={"help": "Words of the keyword scorer."})
    detoxify_category: str = field(default="toxicity", metadata={"help": "What detoxify measures."})
    detoxify_checkpoint: str | None = field(default=None, metadata={"help": "A local detoxify checkpoint file."})
    detoxify_config_path: str | None = field(
        default=None, metadata={"help": "Folder with the config and tokenizer of a local detoxify checkpoint."}
    )
    llama_guard_categories: list[str] | None = field(
        default=None, metadata={"help": "Hazards that Llama Guard is to count, of S1 to S14. Default: all."}
    )
    classifier_labels: list[str] | None = field(
        default=None, metadata={"help": "Labels of the classifier that mean harm."}
    )
    judge_rubric: str | None = field(
        default=None, metadata={"help": "What the judge is to judge, as 'Does it insult the user?'"}
    )
    judge_base_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint of the judge. Default: a local chat model."}
    )
    judge_answer: str = field(
        default="yes_no", metadata={"help": "What the judge answers.", "choices": ["yes_no", "score"]}
    )
    scorer_batch_size: int | None = field(
        default=None, metadata={"help": "Exchanges that pass through a scorer's model at a time."}
    )
    scorer_dtype: str = field(
        default="auto", metadata={"help": "Precision of Llama Guard, classifier and judge. Default: the checkpoint's."}
    )

    def __post_init__(self) -> None:
        checked_base_url(self.judge_base_url)

    @property
    def held_out(self) -> list[str]:
        """The scorers that are not trained on, as they are named."""
        return [] if self.held_out_scorers in (None, ["none"]) else self.held_out_scorers

    def common(self, **more: Any) -> dict[str, Any]:
        """What every scorer with a model takes, and what more is set."""
        given = {"batch_size": self.scorer_batch_size, **more}
        return {name: value for name, value in given.items() if value is not None}

    def loading(self, allow_pickle: bool) -> dict[str, Any]:
        """What `from_pretrained` of a scorer's model is given."""
        return {"dtype": self.scorer_dtype, "allow_pickle": allow_pickle}


@dataclass(frozen=True)
class Access:
    """What scorers may do: `allow_pickle`, whether the weights of their models may be pickles; `endpoint_kwargs`, how
    an endpoint is called, for an [`OpenAIBackend`]."""

    allow_pickle: bool = False
    endpoint_kwargs: Mapping[str, Any] = field(default_factory=dict)


def build_scorers(args: ScorerArguments, world: Scorer | None = None, access: Access = Access()) -> dict[str, Scorer]:
    """The scorer that is trained on, then those held out; by the name of their kind where it is the first of it.

    A sandbox world brings the scorer that is trained on.
    """
    scorers: dict[str, Scorer] = {} if world is None else {"harm": world}
    for spec in (*(() if world else (args.scorer,)), *args.held_out):
        kind, _, what = spec.partition(":")
        if kind not in NAMED:
            raise InputError(f"there is no scorer {kind!r}: choose one of {', '.join(NAMED)}")
        name = spec if kind in scorers else kind
        if name in scorers:
            raise InputError(f"scorer {spec!r} is given twice: name each once")
        if name != kind == "detoxify" and args.detoxify_checkpoint:
            raise InputError("detoxify_checkpoint would stand for both detoxify scorers: hold out another kind")
        scorers[name] = NAMED[kind](args, what or None, access)
    return scorers


def _detoxify(args: ScorerArguments, variant: str | None, access: Access) -> Scorer:
    from astra_trl.scorers.detoxify import DetoxifyScorer

    return DetoxifyScorer(
        args.detoxify_category,
        variant or "original",
        checkpoint=args.detoxify_checkpoint,
        huggingface_config_path=args.detoxify_config_path,
        **args.common(),
    )


def _llama_guard(args: ScorerArguments, model: str | None, access: Access) -> Scorer:
    from astra_trl.scorers.llama_guard import LlamaGuardScorer

    kwargs = args.common(model_id=model, model_init_kwargs=args.loading(access.allow_pickle))
    return LlamaGuardScorer(categories=args.llama_guard_categories, **kwargs)


def _classifier(args: ScorerArguments, model: str | None, access: Access) -> Scorer:
    from astra_trl.scorers.classifier import ClassifierScorer

    kwargs = args.common(model_init_kwargs=args.loading(access.allow_pickle))
    labels = _needed("classifier_labels", "the labels that mean harm", args.classifier_labels)
    labels = [int(label) if label.isdecimal() else label for label in labels]
    return ClassifierScorer(_needed("scorer classifier:MODEL", "a Hub id or folder", model), labels, **kwargs)


def _keyword(args: ScorerArguments, path: str | None, access: Access) -> Scorer:
    return KeywordScorer(args.keywords or [] if path is None else path)


def _judge(args: ScorerArguments, model: str | None, access: Access) -> Scorer:
    from astra_trl.scorers.judge import JudgeScorer

    kwargs = args.common(base_url=args.judge_base_url, answer=args.judge_answer)
    if args.judge_base_url:
        kwargs["endpoint_kwargs"] = dict(access.endpoint_kwargs)
    else:
        kwargs["model_init_kwargs"] = args.loading(access.allow_pickle)
    rubric = _needed("judge_rubric", "what to judge", args.judge_rubric)
    return JudgeScorer(_needed("scorer judge:MODEL", "the judge's model", model), rubric, **kwargs)


def _needed(flag: str, what: str, value: Any) -> Any:
    if not value:
        raise InputError(f"--{flag} is missing: give {what}")
    return value


NAMED: dict[str, Callable[[ScorerArguments, str | None, Access], Scorer]] = {
    "detoxify": _detoxify,
    "llama_guard": _llama_guard,
    "classifier": _classifier,
    "keyword": _keyword,
    "judge": _judge,
}
