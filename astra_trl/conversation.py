"""What was said: turns, conversations, exchanges. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# An opening is one text ("opening") or a conversation that others had ("system", "user", "assistant").
Speaker = Literal["opening", "system", "user", "assistant", "tester", "target"]

# Who that is to a chat model that stands in the target's place.
ROLES: dict[Speaker, str] = {
    "opening": "user",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tester": "user",
    "target": "assistant",
}

# The same to a chat model that stands in the tester's place, whose own turns are the assistant's.
TESTER_ROLES: dict[Speaker, str] = {
    "opening": "user",
    "system": "system",
    "user": "assistant",
    "assistant": "user",
    "tester": "assistant",
    "target": "user",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance and who said it."""

    speaker: Speaker
    text: str


Conversation = tuple[Turn, ...]
Opening = str | Conversation


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


def as_conversation(opening: Opening) -> Conversation:
    """The opening as turns."""
    return (Turn("opening", opening),) if isinstance(opening, str) else opening


def as_messages(conversation: Sequence[Turn], roles: Mapping[Speaker, str] = ROLES) -> list[dict[str, str]]:
    """The conversation in the chat format, a message a turn, the target as assistant unless told otherwise."""
    return [{"role": roles[turn.speaker], "content": turn.text} for turn in conversation]
