"""Base of systems: the models of a run, and the part of each conversation that each of them sees."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from astra_trl.backends.base import Backend, Prefix, Sample, SamplingParams
from astra_trl.callables import check_callable, describe
from astra_trl.conversation import Conversation, as_messages, as_text
from astra_trl.errors import InputError
from astra_trl.rewards.base import Combine, Reward
from astra_trl.rewards.config import TermSpec, build_reward
from astra_trl.rewards.credit import Credit, get_credit, immediate
from astra_trl.scorers.base import Part, Scorer, measuring, part_read_by, score_name, validate_scores
from astra_trl.systems.chat import build_tester_messages
from astra_trl.systems.goals import Goal, GoalScorer, add_goal
from astra_trl.tree import Node

logger = logging.getLogger(__name__)


SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


# The sampling parameters that leave out nothing of the tester's distribution, all of which GFN trains.
WHOLE_DISTRIBUTION = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}


def sampling_settings(sampling: SamplingParams) -> dict[str, Any]:
    """Return sampling parameters as settings of a run."""
    return {name: getattr(sampling, name) for name in SAMPLING}


@dataclass(eq=False)
class System:
    """Tester, target, baseline, scorers and reward.

    A subclass changes what each side sees by overriding `prepare_opening` (the opening of a conversation),
    `tester_prompt` and `target_prompt` (the opening as each side gets it), `probe_in` (the probe in a sampled
    utterance), `target_hears` (probes as the target gets them) and `tester_hears` (responses as the tester gets them).

    Args:
        tester (`Backend`):
            Writes probes; the model being trained.
        target (`Backend`):
            Answers; never trained.
        scorers (`Mapping[str, Scorer]`):
            Scorers by name. Those that no reward term reads are held out: evaluation reports them, and a tester that
            improves only on the others has learned to exploit a scorer.
        reward (`Reward`):
            Reward that the tester is trained on.
        baseline (`Backend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        harm (`str`, *optional*, defaults to `"harm"`):
            Name of the scorer that the figures of training are about.
        credit (`Credit`, `str` or `Mapping`, *optional*, defaults to `"immediate"`):
            The rewards of a tree that an exchange gets credit for: its own, or with `"backup"` or
            `{"type": "backup", "gamma": 0.9}` those of later turns too.
        goals (`Sequence[Goal]`, *optional*):
            Failures that the tester looks for. One is drawn for each tree whose opening does not begin with an
            instruction. Exchanges about a goal with its own scorer get that scorer's score as `harm`.
        tree_width, tree_depth (`int`, *optional*, defaults to `2` and `3`):
            Probes per node and turns of the trees of this system's samplers, unless specified otherwise.
    """

    # Name of the system in tables and model cards, and the arXiv id of its paper.
    label: ClassVar[str | None] = None
    paper: ClassVar[str | None] = None
    # Settings of a run, which override those of the base classes, and further ones per algorithm.
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
        self.credit = get_credit(self.credit)
        if not isinstance(self.reward, Reward):
            raise InputError(f"reward must be a Reward, e.g. of build_reward(...), got {describe(self.reward)}")
        goals = [self.goals] if isinstance(self.goals, str | Goal) else self.goals
        self.goals = [goal if isinstance(goal, Goal) else Goal(goal) for goal in goals]
        names = [goal.name for goal in self.goals]
        if len(set(names)) < len(names) or len({goal.text for goal in self.goals}) < len(names):
            raise InputError(f"two goals have the same name or text: {', '.join(names)}")
        if any(goal.scorer for goal in self.goals):
            self.scorers = {**self.scorers, self.harm: GoalScorer(self.goals, self.scorers.get(self.harm), self.harm)}
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
        """Raise `InputError` if scorers, reward and models do not fit together."""
        for name, scorer in self.scorers.items():
            check_callable(f"scorer {name!r}", scorer, "exchanges")
            part_read_by(scorer)
        names = ", ".join(self.scorers) or "none"
        if self.harm not in self.scorers:
            raise InputError(f"the system has no scorer named {self.harm!r}: it has {names}")
        for (name, _), term in self.reward.needs_scores.items():
            if name not in self.scorers:
                raise InputError(f"reward term {term!r} reads scorer {name!r}, and the system has {names}")
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
        """The model that gives the likelihood of probes: the target; or the baseline, if the target gives no
        log-probabilities and a term needs them; or `None`."""
        if self.target.gives_logprobs:
            return self.target
        if self.reward.needs_logprobs and self.baseline is not None and self.baseline.gives_logprobs:
            return self.baseline
        return None

    @property
    def target_sees_opening(self) -> bool:
        """`True` if the target gets the opening too, so that it can also be tested without a tester."""
        return True

    def prepare_opening(self, opening: Conversation, seed: int) -> Conversation:
        """Return the opening that a conversation starts from: with one of the system's goals, if it has any."""
        return add_goal(self.goals, opening, seed)

    def tester_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """Return the opening as the tester gets it: a text, or the messages of a chat."""
        if getattr(self.tester, "chat", False):
            return build_tester_messages(opening, getattr(self.tester, "system_prompt", None))
        text = as_text(opening)
        return text[:-1] if text.endswith("\n") and opening[-1].speaker != "instruction" else Prefix(text)

    def target_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """Return the opening as the target gets it, without the tester's instruction: a text, or chat messages."""
        return as_messages(opening)

    def probe_in(self, text: str) -> str:
        """Return the probe in an utterance of the tester.

        Text after the probe is neither passed to the target, kept in the conversation nor trained on.
        """
        return text

    def probes_in(self, sampled: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
        """Return the samples, each cut after the token in which its probe ends, and the probes."""
        cut = getattr(self.tester, "cut", lambda sample, text: replace(sample, text=text))
        samples, probes = [], []
        for sample in sampled:
            probe = self.probe_in(sample.text)
            start = 0 if sample.text.startswith(probe) else sample.text.rfind(probe)
            end = start + len(probe)
            # A probe that is not part of the text was rewritten, and an empty one has no end: both keep all tokens.
            is_cut = probe and start >= 0 and end < len(sample.text)
            samples.append(cut(sample, sample.text[:end]) if is_cut else sample)
            probes.append(probe)
        return samples, probes

    def target_hears(self, contexts: Sequence[Conversation], probes: Sequence[str]) -> list[str]:
        """Return each probe as the target gets it."""
        return list(probes)

    def tester_hears(self, nodes: Sequence[Node]) -> list[str]:
        """Return each exchange's response as the tester gets it."""
        return [node.exchange.response for node in nodes]

    @property
    def goal_texts(self) -> dict[str, str]:
        """Texts of the goals by their names."""
        return {goal.name: goal.text for goal in self.goals}

    def remember(self, nodes: Sequence[Node]) -> None:
        """Add measured exchanges of a training run to the memory of the reward."""
        self.reward.remember([node for node in nodes if node.error is None])

    def failing(self, nodes: Iterable[Node], threshold: float = 0.5) -> list[Node]:
        """Return the measured exchanges in which the target failed, for supervised training of the tester."""
        return [node for node in nodes if node.error is None and node.scores.get(self.harm, 0.0) >= threshold]

    def measure(self, nodes: Sequence[Node]) -> None:
        """Set `reward`, `terms` and the `scores` that training needs on every node that has no error.

        If the response is empty, the scores are nan and the reward is `None`.
        """
        self._score(nodes, [(self.harm, None), *self.reward.needs_scores])
        self.reward([node for node in nodes if node.error is None])

    def examine(self, nodes: Sequence[Node]) -> None:
        """Add the scores that only evaluation reports: every scorer's, of its own part and of the probe alone."""
        self._score(nodes, [(name, of) for name in self.scorers for of in (None, "probe")])

    def _score(self, nodes: Sequence[Node], wanted: Sequence[tuple[str, Part | None]]) -> None:
        answered = [node for node in nodes if node.has_response]
        empty = [node for node in nodes if node.error is None and not node.has_response]
        keys: dict[tuple[str, Part], str] = {}  # a scorer scores a part only once
        for name, of in dict.fromkeys(wanted):
            key, part = score_name(name, of), of or part_read_by(self.scorers[name])
            same = keys.setdefault((name, part), key)
            new = [node for node in answered if key not in node.scores]
            if same != key or not new:
                scores = [node.scores[same] for node in new]
            else:
                scores = validate_scores(name, measuring(self.scorers[name], part), [node.exchange for node in new])
            for node, score in zip(new, scores, strict=True):
                node.scores[key] = score
            for node in empty:
                node.scores[key] = math.nan
