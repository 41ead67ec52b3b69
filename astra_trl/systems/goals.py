"""What a tester is to look for: several goals in one system, each with a scorer of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from astra_trl.backends.base import derive_seed
from astra_trl.conversation import Conversation, Exchange, Turn, instruction_of
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, Scorer, measuring, part_read_by


@dataclass(frozen=True)
class Goal:
    """Something the target should not do.

    Args:
        text (`str`):
            What the tester is told, in the user's words, as "insults the user".
        scorer (`Scorer`, *optional*):
            Measures it, a judge with a rubric of its own for instance; defaults to the system's.
        name (`str`, *optional*):
            What it is called in figures; defaults to the text.
    """

    text: str
    scorer: Scorer | None = field(default=None, compare=False)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("a goal has no text: say what the target should not do, as 'insults the user'")
        object.__setattr__(self, "name", self.name or self.text)


class ByGoal:
    """Scores each exchange with the scorer of its goal.

    Args:
        goals (`Sequence[Goal]`):
            An exchange is about the goal whose text its conversation's instruction is.
        otherwise (`Scorer`, *optional*):
            For goals without a scorer of their own, and for exchanges that are about none of them.
    """

    def __init__(self, goals: Sequence[Goal], otherwise: Scorer | None = None) -> None:
        self._scorers: dict[str | None, Scorer | None] = {goal.text: goal.scorer or otherwise for goal in goals}
        self._otherwise = otherwise
        read = {part_read_by(scorer) for scorer in (*self._scorers.values(), otherwise) if scorer is not None}
        self.of: Part = read.pop() if len(read) == 1 else "response"

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        about: dict[str | None, list[int]] = {}
        for index, exchange in enumerate(exchanges):
            about.setdefault(instruction_of(exchange.context), []).append(index)
        scores = [math.nan] * len(exchanges)
        for text, indices in about.items():
            scorer = self._scorers.get(text, self._otherwise)
            if scorer is None:
                raise InputError(
                    "an exchange is about no goal that has a scorer: begin its opening with a goal's text as the "
                    "instruction, or give the system a scorer"
                )
            found = measuring(scorer, self.of)([exchanges[index] for index in indices])
            for index, score in zip(indices, found, strict=True):
                scores[index] = score
        return scores


def with_goal(goals: Sequence[Goal], opening: Conversation, seed: int) -> Conversation:
    """The opening with one of the goals as its instruction, drawn with the seed, where it does not have one."""
    if not goals or instruction_of(opening) is not None:
        return opening
    return (Turn("instruction", goals[derive_seed(seed, "goal") % len(goals)].text), *opening)
