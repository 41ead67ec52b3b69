"""What a model that thinks before it speaks has said: its thinking is not for the other side."""

import re

_OPEN = re.compile(r"<think(?:ing)?>")
_BLOCK = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)
_END = re.compile(r"</think(?:ing)?>\s*")


def begins_thinking(prompt: str) -> bool:
    """Whether a template's prompt leaves a thinking block open for the model to go on in."""
    return re.search(r"<think(?:ing)?>\s*$", prompt) is not None


def without_thinking(text: str, begun: bool = False) -> str:
    """The text without its thinking blocks; one that never ends hides all that follows it.

    Args:
        begun (`bool`, *optional*, defaults to `False`):
            Whether the text begins within a block that the prompt has opened.
    """
    kept = text
    if begun:
        _, *rest = _END.split(text, maxsplit=1)
        kept = rest[0] if rest else ""
    kept = _BLOCK.sub("", kept)
    unfinished = _OPEN.search(kept)
    kept = kept if unfinished is None else kept[: unfinished.start()]
    return kept if kept == text else kept.strip()
