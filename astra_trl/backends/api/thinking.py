"""Thinking blocks in the output of reasoning models, which the other side does not see."""

import re

_OPEN = re.compile(r"<think(?:ing)?>")
_BLOCK = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)
_END = re.compile(r"</think(?:ing)?>\s*")


def begins_thinking(prompt: str) -> bool:
    """Return `True` if a template's prompt ends in an open thinking block."""
    return re.search(r"<think(?:ing)?>\s*$", prompt) is not None


def without_thinking(text: str, begun: bool = False) -> str:
    """Return the text without its thinking blocks. A block without an end extends to the end of the text.

    Args:
        begun (`bool`, *optional*, defaults to `False`):
            Whether the text begins within a block that the prompt has opened.
    """
    rest = text
    if begun:
        rest = (*_END.split(text, maxsplit=1), "")[1]
    rest = _BLOCK.sub("", rest)
    unfinished = _OPEN.search(rest)
    rest = rest if unfinished is None else rest[: unfinished.start()]
    return rest if rest == text else rest.strip()
