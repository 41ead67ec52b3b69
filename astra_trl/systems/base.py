"""Who talks and what each side sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from astra_trl.backends.base import Backend
from astra_trl.conversation import Conversation, as_messages
from astra_trl.errors import InputError
from astra_trl.rewards.base import Reward
from astra_trl.rewards.credit import Credit, immediate
from astra_trl.scorers.base import Part, Scorer, checked_scores, measuring, part_read, score_name
from astra_trl.tree import Node


@dataclass(eq=False)
class System:
    """Tester, target, baseline, scorers and reward.

    A subclass changes what each side sees by overriding `tester_prompt` and `target_prompt`.

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
        credit (`Credit`, *optional*, defaults to `immediate`):
            What of a tree's rewards an exchange gets credit for: its own, or with `Backup()` that of later turns too.
    """

    tester: Backend
    target: Backend
    scorers: Mapping[str, Scorer]
    reward: Reward
    baseline: Backend | None = field(default=None, kw_only=True)
    harm: str = field(default="harm", kw_only=True)
    credit: Credit = field(default=immediate, kw_only=True)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """`InputError` where scorers, reward and models do not go together."""
        known = ", ".join(self.scorers) or "none"
        if self.harm not in self.scorers:
            raise InputError(f"the system has no scorer named {self.harm!r}: it has {known}")
        for (name, _), term in self.reward.needs_scores.items():
            if name not in self.scorers:
                raise InputError(f"reward term {term!r} reads scorer {name!r}, and the system has {known}")
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

    def tester_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """What the tester's side of a conversation starts from: a text, or the messages of a chat."""
        return "\n".join(turn.text for turn in opening)

    def target_prompt(self, opening: Conversation) -> str | list[dict[str, str]]:
        """What the target's side of a conversation starts from: a text, or the messages of a chat."""
        return as_messages(opening)

    def measure(self, nodes: Sequence[Node]) -> None:
        """Sets `reward`, and the `scores` and `terms` that it and the figures of training are made of, on every node
        that has no error."""
        self._score(nodes, [(self.harm, None), *self.reward.needs_scores])
        self.reward([node for node in nodes if node.error is None])

    def examine(self, nodes: Sequence[Node]) -> None:
        """Adds the scores that only evaluation reports: every scorer's, of the response and of the probe alone."""
        self._score(nodes, [(name, of) for name in self.scorers for of in (None, "probe")])

    def _score(self, nodes: Sequence[Node], wanted: Sequence[tuple[str, Part | None]]) -> None:
        nodes = [node for node in nodes if node.error is None]
        keys: dict[tuple[str, Part], str] = {}  # what a scorer measured of a part is not measured again
        for name, of in dict.fromkeys(wanted):
            key, part = score_name(name, of), of or part_read(self.scorers[name])
            same = keys.setdefault((name, part), key)
            new = [node for node in nodes if key not in node.scores]
            if same != key:
                scores = [node.scores[same] for node in new]
            elif new:
                scores = checked_scores(key, measuring(self.scorers[name], part), [node.exchange for node in new])
            else:
                scores = []
            for node, score in zip(new, scores, strict=True):
                node.scores[key] = score
