"""Markdown in which text of models and users stays text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from astra_trl.text import visible


def escape(value: Any) -> str:
    """Return a value as one line in which nothing acts as Markdown or HTML."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(visible(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*_\[\]#|~@$]|:(?=/)|(?<=www)\.", r"\\\g<0>", text)


def fenced(text: str, language: str) -> str:
    """Return a block of code that nothing in the text can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], right: bool = False) -> str:
    """Return a table of escaped cells; with `right`, every column but the first is aligned to the right."""
    rule = "|---|" + ("---:|" if right else "---|") * (len(head) - 1)
    first, *rest = ("|" + "".join(f" {escape(cell)} |" if cell else " |" for cell in row) for row in [head, *rows])
    return "\n".join([first, rule, *rest])
