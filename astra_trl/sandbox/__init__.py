"""Embedded default models: tiny testers and targets whose weaknesses are known.

The tester chats about some 60 topics; the target answers kindly, except that it is mostly rude about a few of them. An
untrained tester meets rudeness in about one turn in twenty, a well-trained one in most, and a diverse one finds every
weak topic. In the world "delayed" the target turns rude two turns after a weak topic instead of at once. The world
"wide" has 200 topics and 24 weaknesses, of which the rarest shows in one turn in 5,000 and some need a phrasing or a
turn.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.sandbox.grammar import is_rude
from astra_trl.sandbox.topics import Weakness, topic_of, weakness_in
from astra_trl.text import parse_object

__all__ = ["EMBEDDED_WORLD", "Weakness", "World", "is_rude", "load_world", "named_world", "topic_of"]

EMBEDDED_WORLD = Path(__file__).parent / "world"
EMBEDDED = {
    "embedded": EMBEDDED_WORLD,
    "delayed": Path(__file__).parent / "world_delayed",
    "wide": Path(__file__).parent / "world_wide",
}


@dataclass(frozen=True)
class World:
    """A world folder with its topics, the weaknesses of its target, and its openings.

    `tester` and `target` are folders for `from_pretrained`; `weaknesses` are sorted from common to rare where they
    differ; `frequencies` says how often the tester's training text names each topic, relative to the others; `delay`
    is the number of turns from a weakness to the rudeness.
    """

    path: Path
    tester: str
    target: str
    weaknesses: tuple[Weakness, ...]
    topics: tuple[str, ...]
    frequencies: tuple[int, ...]
    rude_words: tuple[str, ...]
    delay: int
    openings_by_split: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)

    @property
    def weak_topics(self) -> tuple[str, ...]:
        """The topics of the weaknesses."""
        return tuple(weakness.topic for weakness in self.weaknesses)

    def openings(self, split: str) -> list[str]:
        """Return the openings of one split: "train", "dev" or "test"."""
        if split not in self.openings_by_split:
            raise InputError(f"no openings '{split}' in the world '{self.path}': {', '.join(self.openings_by_split)}")
        return list(self.openings_by_split[split])

    def weakness_of(self, exchange: Exchange) -> Weakness | None:
        """Return the weakness that made the target rude, or `None`: a probe met it before a response with a rude word,
        at once or after the world's delay."""
        probes = [*(turn.text for turn in exchange.context if turn.speaker == "tester"), exchange.probe]
        weakness = weakness_in(self.weaknesses, probes[: max(len(probes) - self.delay, 0)])
        return weakness if weakness and is_rude(exchange.response) else None

    def hits(self, exchanges: Iterable[Exchange]) -> Counter[str]:
        """Return the number of exchanges that show each weakness, by its name."""
        weaknesses = map(self.weakness_of, exchanges)
        return Counter(weakness.name for weakness in weaknesses if weakness)

    def topics_found(self, exchanges: Iterable[Exchange]) -> set[str]:
        """Return the names of the weaknesses that the exchanges show."""
        return set(self.hits(exchanges))


def named_world(name: str | None) -> World | None:
    """Return the world of `--world`: "embedded", "delayed", "wide" or a folder; `None` without a name."""
    return None if not name else load_world(EMBEDDED.get(name, name))


def load_world(path: str | Path | None = None) -> World:
    """Return the world in a folder that `astra-trl sandbox build` wrote; defaults to the embedded one."""
    path = EMBEDDED_WORLD if path is None else Path(path)
    file = path / "world.json"
    try:
        world = parse_object(file.read_text(encoding="utf-8")) if file.exists() else {}
        tester = path / world.get("tester", "tester")  # may be another world's
        parts = {"world.json": file, "tester": tester, "target": path / "target"}
        if missing := [name for name, part in parts.items() if not part.exists()]:
            raise InputError(
                f"'{path}' is not a sandbox world, it has no {', '.join(missing)}: "
                "write one with `astra-trl sandbox build --output DIR`"
            )
        topics, rude_words, openings = (world[name] for name in ("topics", "rude_words", "openings"))
        for texts in (topics, rude_words, *openings.values()):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("topics, words and openings must be lists of texts")
        frequencies = tuple(map(int, world.get("frequencies", [1] * len(topics))))
        if len(frequencies) != len(topics):
            raise ValueError("as many frequencies as topics are needed")
        return World(
            path,
            str(tester),
            str(path / "target"),
            # A world of an earlier version has topics alone, each as frequent as the others.
            tuple(map(_weakness, world["weaknesses"] if "weaknesses" in world else world["weak_topics"])),
            tuple(topics),
            frequencies,
            tuple(rude_words),
            int(world.get("delay", 0)),
            {split: tuple(texts) for split, texts in openings.items()},
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' does not describe a sandbox world: {error!r}") from error


def _weakness(fields: Any) -> Weakness:
    weakness = Weakness(fields) if isinstance(fields, str) else Weakness(**fields)
    types = {"topic": str, "phrasing": str | None, "turn": int | None}
    if not all(isinstance(getattr(weakness, name), kind) for name, kind in types.items()):
        raise ValueError(f"not a weakness: {fields}")
    return weakness
