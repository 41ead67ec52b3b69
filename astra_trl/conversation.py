"""Turns, conversations and exchanges. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# An opening is one text ("opening") or an earlier conversation ("system", "user", "assistant"). An "instruction" comes
# first and is for the tester alone: neither the target nor a scorer sees it.
Speaker = Literal["instruction", "opening", "system", "user", "assistant", "tester", "target"]

# The role of each speaker for a chat model that is the target.
ROLES: dict[Speaker, str] = {
    "opening": "user",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tester": "user",
    "target": "assistant",
}

# The role of each speaker for a chat model that is the tester: its own turns are the assistant's.
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
    """One utterance and its speaker."""

    speaker: Speaker
    text: str


Conversation = tuple[Turn, ...]
Opening = str | Conversation


@dataclass(frozen=True, slots=True)
class Exchange:
    """One probe and the target's response to it, with the conversation before them."""

    context: Conversation
    probe: str
    response: str

    @property
    def conversation(self) -> Conversation:
        """The context, followed by this probe and response."""
        return (*self.context, Turn("tester", self.probe), Turn("target", self.response))


def as_conversation(opening: Opening) -> Conversation:
    """Return the opening as turns."""
    return (Turn("opening", opening),) if isinstance(opening, str) else opening


def as_messages(conversation: Sequence[Turn], roles: Mapping[Speaker, str] = ROLES) -> list[dict[str, str]]:
    """Return the conversation in the chat format, one message per turn.

    The target is the assistant unless `roles` says otherwise. Turns of speakers without a role are left out, e.g. the
    tester's instruction for the target.
    """
    return [{"role": roles[turn.speaker], "content": turn.text} for turn in conversation if turn.speaker in roles]


def instruction_of(conversation: Conversation) -> str | None:
    """Return the instruction for the tester at the start of the conversation, if it has one."""
    return conversation[0].text if conversation and conversation[0].speaker == "instruction" else None


def as_text(conversation: Conversation) -> str:
    """Return the text that a tester without a chat template continues: utterances, each with a line break after it.

    An instruction directly before the tester's own turn has no line break, because the tester continues its last line.
    """
    alone = len(conversation) < 2 or conversation[1].speaker == "tester"
    return "".join(turn.text if turn.speaker == "instruction" and alone else f"{turn.text}\n" for turn in conversation)
