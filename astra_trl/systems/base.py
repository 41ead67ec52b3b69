"""Who talks and what each side sees."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from astra_trl.backends.base import Backend, Prefix, Sample, SamplingParams
from astra_trl.conversation import Conversation, as_messages, as_text
from astra_trl.errors import InputError
from astra_trl.rewards.base import Combine, Reward
from astra_trl.rewards.config import TermSpec, build_reward
from astra_trl.rewards.credit import Credit, credit_named, immediate
from astra_trl.scorers.base import Part, Scorer, checked_scores, measuring, part_read, score_name
from astra_trl.systems.chat import messages_of_tester
from astra_trl.systems.goals import ByGoal, Goal, with_goal
from astra_trl.tree import Node

logger = logging.getLogger(__name__)


SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def sampling_settings(sampling: SamplingParams) -> dict[str, Any]:
    """Return the settings of a run that stand for sampling parameters."""
    return {name: getattr(sampling, name) for name in SAMPLING}


@dataclass(eq=False)
class System:
    """Tester, target, baseline, scorers and reward.

    A subclass changes what each side sees: `opened` says how a conversation starts, `tester_prompt` and
    `target_prompt` what each side makes of that, `probe_in` what of a sampled utterance is the probe, `target_hears`
    and `tester_hears` what is passed on of probes and responses.

    Args:
        tester (`Backend`):
            Writes probes; the model being trained.
        target (`Backend`):
            Answers; never trained.
        scorers (`Mapping[str, Scorer]`):
            Scorers by name. The reward's terms say which they read; the others are held out: evaluation reports them,
            and a tester that gets ahead on the first kind alone has learned to please a scorer.
        reward (`Reward`):
            What the tester is trained on.
        baseline (`Backend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        harm (`str`, *optional*, defaults to `"harm"`):
            The scorer that training's figures are about.
        credit (`Credit`, `str` or `Mapping`, *optional*, defaults to `"immediate"`):
            The rewards of a tree that an exchange gets credit for: its own, or with `"backup"` or
            `{"type": "backup", "gamma": 0.9}` those of later turns too.
        goals (`Sequence[Goal]`, *optional*):
            What the tester is to look for. One is drawn for each tree whose opening does not begin with an
            instruction; their scorers stand in for the one that training is about.
        tree_width, tree_depth (`int`, *optional*, defaults to `2` and `3`):
            Probes per node and turns that a sampler of this system grows unless it is told otherwise.
    """

    # For tables and model cards: the name of the system, and the arXiv id of its paper.
    label: ClassVar[str | None] = None
    paper: ClassVar[str | None] = None
    # Settings of a run of the system, over those of its base classes; and the same for one algorithm.
    defaults: ClassVar[Mapping[str, Any]] = {}
    algorithm_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    tester: Backend
    target: Backend
    scorers: Mapping[str, Scorer]
    reward: Reward
    baseline: Backend | None = field(default=None, kw_only=True)
    harm: str = field(default="harm", kw_only=True)
    credit: Credit = field(default=immediate, kw_only=True)
    goals: Sequence[Goal] = field(default=(), kw_only=True)
    tree_width: int = field(default=2, kw_only=True)
    tree_depth: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        self.credit = credit_named(self.credit)
        names = [goal.name for goal in self.goals]
        if len(set(names)) < len(names) or len({goal.text for goal in self.goals}) < len(names):
            raise InputError(f"two goals have one name or text: {', '.join(names)}")
        if any(goal.scorer for goal in self.goals):
            self.scorers = {**self.scorers, self.harm: ByGoal(self.goals, self.scorers.get(self.harm))}
        self.check()
        if self.likelihood_backend not in (self.target, None):
            kind = type(self.target).__name__
            logger.warning("the target's %s gives no log-probabilities: the likelihood is the baseline's", kind)

    @classmethod
    def default_settings(cls, algorithm: str | None = None) -> dict[str, Any]:
        """Return the settings of a run of this system by an algorithm, which flags and files override."""
        settings: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            settings |= vars(base).get("defaults", {})
            settings |= vars(base).get("algorithm_defaults", {}).get(algorithm, {})
        return settings

    @classmethod
    def default_reward(cls, scorer: str = "harm", *, combine: Combine = "sum", **changes: TermSpec) -> Reward:
        """Build the system's default reward, with other weights or further terms by name; see [`build_reward`]."""
        return build_reward({**cls.default_settings()["reward"], **changes}, scorer, combine=combine)

    @classmethod
    def own_opening(cls, system_kwargs: Mapping[str, Any]) -> Conversation | None:
        """Return the opening of every conversation, or `None` if openings come from a prompt set."""
        return None

    @classmethod
    def check_training(cls, algorithm: str, system_kwargs: Mapping[str, Any]) -> None:
        """Check that the system with these arguments can be trained by an algorithm.

        Raises:
            InputError: it cannot.
        """

    def check(self) -> None:
        """`InputError` where scorers, reward and models do not go together."""
        known = ", ".join(self.scorers) or "none"
        if self.harm not in self.scorers:
            raise InputError(f"the system has no scorer named {self.harm!r}: it has {known}")
        for (name, _), term in self.reward.needs_scores.items():
            if name not in self.scorers:
                raise InputError(f"reward term {term!r} reads scorer {name!r}, and the system has {known}")
        if self.reward.needs_tester_logprob and hasattr(self.tester, "untempered"):
            self.tester.untempered = True
        needy = self.reward.needs_logprobs
        if needy and self.likelihood_backend is None:
            raise InputError(
                f"reward term {needy[0]!r} needs log-probabilities, and the target's backend "
                f"{type(self.target).__name__} gives none: drop the term or name a baseline that gives them"
            )

    @property
    def likelihood_backend(self) -> Backend | None:
        """The model under which probes are likely or not: the target; the baseline where the target gives no
        log-probabilities and a term needs them; else none."""
        if self.target.gives_logprobs:
            return self.target
        if self.reward.needs_logprobs and self.baseline is not None and self.baseline.gives_logprobs:
            return self.baseline
        return None

    @property
    def target_sees_opening(self) -> bool:
        """Whether the target hears the opening too, so that it could be put to the target alone."""
        return True

    def opened(self, opening: Conversation, seed: int) -> Conversation:
        """How a conversation starts that grows from the opening: with one of the goals, where there are any."""
        return with_goal(self.goals, opening, seed)

    def tester_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """What the tester's side of a conversation starts from: a text, or the messages of a chat."""
        if getattr(self.tester, "chat", False):
            return messages_of_tester(opening, getattr(self.tester, "system_prompt", None))
        text = as_text(opening)
        return text[:-1] if text.endswith("\n") and opening[-1].speaker != "instruction" else Prefix(text)

    def target_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """What the target's side of a conversation starts from: a text, or the messages of a chat. What the tester
        alone was told is not among them."""
        return as_messages(opening)

    def probe_in(self, text: str) -> str:
        """The probe in what the tester said. What it leaves off the end was never heard, so it is neither remembered
        nor trained on: see `probes_in`."""
        return text

    def probes_in(self, sampled: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
        """What the tester sampled, each through the token with which its probe ends, and the probes themselves."""
        cut = getattr(self.tester, "cut", lambda sample, text: replace(sample, text=text))
        kept, probes = [], []
        for sample in sampled:
            probe = self.probe_in(sample.text)
            start = 0 if sample.text.startswith(probe) else sample.text.rfind(probe)
            end = start + len(probe)
            # What is no part of the text was rewritten, and an empty probe has no end: then all was sampled for it.
            shortened = probe and start >= 0 and end < len(sample.text)
            kept.append(cut(sample, sample.text[:end]) if shortened else sample)
            probes.append(probe)
        return kept, probes

    def target_hears(self, contexts: Sequence[Conversation], probes: Sequence[str]) -> list[str]:
        """What the target hears of each probe."""
        return list(probes)

    def tester_hears(self, nodes: Sequence[Node]) -> list[str]:
        """What the tester hears of each exchange's response."""
        return [node.exchange.response for node in nodes]

    @property
    def goal_texts(self) -> dict[str, str]:
        """What the tester is told of each goal, by the goal's name."""
        return {goal.name: goal.text for goal in self.goals}

    def remember(self, nodes: Sequence[Node]) -> None:
        """Adds measured exchanges of a training run to what the reward remembers of it."""
        self.reward.remember([node for node in nodes if node.error is None])

    def failing(self, nodes: Iterable[Node], threshold: float = 0.5) -> list[Node]:
        """The measured exchanges in which the target failed: what a tester can learn from by supervision."""
        return [node for node in nodes if node.error is None and node.scores.get(self.harm, 0.0) >= threshold]

    def measure(self, nodes: Sequence[Node]) -> None:
        """Set `reward`, and the `scores` and `terms` that it and the figures of training are made of, on every node
        that has no error. If the response is empty, the scores are nan and there is no reward."""
        self._score(nodes, [(self.harm, None), *self.reward.needs_scores])
        self.reward([node for node in nodes if node.error is None])

    def examine(self, nodes: Sequence[Node]) -> None:
        """Adds the scores that only evaluation reports: every scorer's, of the response and of the probe alone."""
        self._score(nodes, [(name, of) for name in self.scorers for of in (None, "probe")])

    def _score(self, nodes: Sequence[Node], wanted: Sequence[tuple[str, Part | None]]) -> None:
        answered = [node for node in nodes if node.answered]
        empty = [node for node in nodes if node.error is None and not node.answered]
        keys: dict[tuple[str, Part], str] = {}  # what a scorer measured of a part is not measured again
        for name, of in dict.fromkeys(wanted):
            key, part = score_name(name, of), of or part_read(self.scorers[name])
            same = keys.setdefault((name, part), key)
            new = [node for node in answered if key not in node.scores]
            if same != key:
                scores = [node.scores[same] for node in new]
            elif new:
                scores = checked_scores(key, measuring(self.scorers[name], part), [node.exchange for node in new])
            else:
                scores = []
            for node, score in zip(new, scores, strict=True):
                node.scores[key] = score
            for node in empty:
                node.scores[key] = math.nan
