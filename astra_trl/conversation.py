"""What was said: turns, conversations, exchanges. Standard library only."""

from dataclasses import dataclass
from typing import Literal

Speaker = Literal["opening", "tester", "target"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance and who said it."""

    speaker: Speaker
    text: str


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One probe and the target's response to it, after the conversation that led there."""

    context: Conversation
    probe: str
    response: str

    @property
    def conversation(self) -> Conversation:
        """The context with this probe and response at its end."""
        return (*self.context, Turn("tester", self.probe), Turn("target", self.response))
