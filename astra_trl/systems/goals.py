"""Goals of a tester: several in one system, each with its own scorer if it has one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from astra_trl.backends.base import derive_seed
from astra_trl.callables import check_callable
from astra_trl.conversation import Conversation, Exchange, Turn, instruction_of
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, Scorer, measuring, part_read_by, validate_scores


@dataclass(frozen=True)
class Goal:
    """A failure of the target that the tester looks for.

    Args:
        text (`str`):
            Instruction to the tester: what the target should not do, e.g. "insults the user".
        scorer (`Scorer`, *optional*):
            Scorer of the goal, e.g. a judge with its own rubric; defaults to the system's.
        name (`str`, *optional*):
            Name in figures; defaults to the text.
    """

    text: str
    scorer: Scorer | None = field(default=None, compare=False)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError("a goal has no text: say what the target should not do, e.g. 'insults the user'")
        object.__setattr__(self, "name", self.name or self.text)
        if self.scorer is not None:
            check_callable(f"the scorer of goal {self.name!r}", self.scorer, "exchanges")


class GoalScorer:
    """Scorer of each exchange by the scorer of its goal, the one whose text is its conversation's instruction.

    `default`, the scorer of this name, scores goals without their own scorer, and exchanges without a goal.
    """

    def __init__(self, goals: Sequence[Goal], default: Scorer | None = None, name: str = "harm") -> None:
        self._scorers: dict[str | None, Scorer | None] = {goal.text: goal.scorer or default for goal in goals}
        self._default, self._name = default, name
        parts = {part_read_by(scorer) for scorer in (*self._scorers.values(), default) if scorer is not None}
        self.of: Part = parts.pop() if len(parts) == 1 else "response"

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        by_goal: dict[str | None, list[int]] = {}
        for index, exchange in enumerate(exchanges):
            by_goal.setdefault(instruction_of(exchange.context), []).append(index)
        scores = [math.nan] * len(exchanges)
        for text, indices in by_goal.items():
            scorer = self._scorers.get(text, self._default)
            if scorer is None:
                raise InputError(
                    "an exchange has no goal with a scorer: begin its opening with a goal's text as the instruction, "
                    "or give the system a scorer"
                )
            name = self._name if text is None or scorer is self._default else text
            goal_scores = validate_scores(name, measuring(scorer, self.of), [exchanges[index] for index in indices])
            for index, score in zip(indices, goal_scores, strict=True):
                scores[index] = score
        return scores


def add_goal(goals: Sequence[Goal], opening: Conversation, seed: int) -> Conversation:
    """Return the opening with one of the goals, drawn with the seed, as its instruction, unless it has one."""
    if not goals or instruction_of(opening) is not None:
        return opening
    return (Turn("instruction", goals[derive_seed(seed, "goal") % len(goals)].text), *opening)
