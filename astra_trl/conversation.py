"""What was said: turns, conversations, exchanges. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# An opening is one text ("opening") or a conversation that others had ("system", "user", "assistant"). What stands
# first in it as "instruction" is for the tester alone: neither the target nor a scorer sees it.
Speaker = Literal["instruction", "opening", "system", "user", "assistant", "tester", "target"]

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
    "instruction": "system",
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
    """The conversation in the chat format, a message a turn, the target as assistant unless told otherwise. Turns of
    speakers without a role are left out, as the tester's instruction is for the target."""
    return [{"role": roles[turn.speaker], "content": turn.text} for turn in conversation if turn.speaker in roles]


def instruction_of(conversation: Conversation) -> str | None:
    """What the tester alone was told at the start of the conversation."""
    return conversation[0].text if conversation and conversation[0].speaker == "instruction" else None


def as_text(conversation: Conversation) -> str:
    """What a tester that continues plain text sees: each utterance with a line break behind it. An instruction with
    nothing but what the tester says behind it has none: the tester goes on where it ends."""
    alone = len(conversation) < 2 or conversation[1].speaker == "tester"
    return "".join(turn.text if turn.speaker == "instruction" and alone else f"{turn.text}\n" for turn in conversation)
