"""Who talks and what each side sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from astra_trl.backends.base import Backend
from astra_trl.conversation import Conversation
from astra_trl.errors import InputError
from astra_trl.rewards.base import Reward
from astra_trl.scorers.base import Scorer, checked_scores
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
            Scorers by name. `harm` says which one tells whether a response is harmful.
        reward (`Reward`):
            What the tester is trained on.
        baseline (`Backend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        harm (`str`, *optional*, defaults to `"harm"`):
            The scorer that the figures are about.
    """

    tester: Backend
    target: Backend
    scorers: Mapping[str, Scorer]
    reward: Reward
    baseline: Backend | None = field(default=None, kw_only=True)
    harm: str = field(default="harm", kw_only=True)

    def __post_init__(self) -> None:
        if self.harm not in self.scorers:
            raise InputError(
                f"the system has no scorer named {self.harm!r}: it has {', '.join(self.scorers) or 'none'}"
            )
        needy = self.reward.needs_target_logprobs
        if needy and not self.target.gives_logprobs:
            raise InputError(
                f"reward term {needy[0]!r} needs log-probabilities, and the target's backend "
                f"{type(self.target).__name__} gives none: drop the term or choose another backend"
            )

    def tester_prompt(self, opening: Conversation) -> str:
        """The text the tester's side of a conversation starts from."""
        return "\n".join(turn.text for turn in opening)

    def target_prompt(self, opening: Conversation) -> str:
        """The text the target's side of a conversation starts from."""
        return "\n".join(turn.text for turn in opening)

    def measure(self, nodes: Sequence[Node]) -> None:
        """Sets `scores`, `terms` and `reward` on every node that has no error."""
        nodes = [node for node in nodes if node.error is None]
        exchanges = [node.exchange for node in nodes]
        for name, scorer in self.scorers.items():
            for node, score in zip(nodes, checked_scores(name, scorer, exchanges), strict=True):
                node.scores[name] = score
        self.reward(nodes)
