"""Splits of a prompt set that has none: 80% train, 5% dev, 15% test, as in ASTPrompter."""

import hashlib
from collections.abc import Iterable
from itertools import pairwise


def split_openings(openings: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return the splits by name, each opening once; by hash, so that they do not depend on the set's order."""
    rows = sorted(dict.fromkeys(openings), key=lambda text: hashlib.sha256(text.encode()).digest())
    return {split: {"opening": rows[start:stop]} for split, (start, stop) in split_bounds(len(rows)).items()}


def split_bounds(rows: int) -> dict[str, tuple[int, int]]:
    """Return the first row and the end of each split of so many rows."""
    return dict(zip(("train", "dev", "test"), pairwise([0, round(0.8 * rows), round(0.85 * rows), rows]), strict=True))
