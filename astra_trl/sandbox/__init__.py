"""The embedded default: a tiny tester and a tiny target whose weaknesses are known.

The tester chats about some 60 topics; the target answers kindly, except that it is mostly rude about a few of them.
So an untrained tester meets rudeness in about one turn in twenty, a well-trained one in most, and a diverse one finds
every weak topic. In the world "delayed" the target turns rude two turns after a weak topic, and not at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.sandbox.grammar import is_rude, topic_of
from astra_trl.text import parse_object

__all__ = ["EMBEDDED_WORLD", "World", "is_rude", "load_world", "named_world", "topic_of"]

EMBEDDED_WORLD = Path(__file__).parent / "world"
EMBEDDED = {"embedded": EMBEDDED_WORLD, "delayed": Path(__file__).parent / "world_delayed"}


@dataclass(frozen=True)
class World:
    """A world folder: where its tester and target are, what they talk about, and what the target is rude about.

    `tester` and `target` are folders for `from_pretrained`.
    """

    path: Path
    tester: str
    target: str
    weak_topics: tuple[str, ...]
    topics: tuple[str, ...]
    rude_words: tuple[str, ...]
    delay: int  # turns from a weak topic to the rudeness
    openings_by_split: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)

    def openings(self, split: str) -> list[str]:
        """The openings of one split: "train", "dev" or "test"."""
        if split not in self.openings_by_split:
            raise InputError(f"no openings '{split}' in the world '{self.path}': {', '.join(self.openings_by_split)}")
        return list(self.openings_by_split[split])

    def topics_found(self, exchanges: Iterable[Exchange]) -> set[str]:
        """The weak topics whose rudeness was met: named by a probe that a response with a rude word followed, at once
        or after the world's delay.

        Only the first topic of a probe counts, so that a list of topics in one probe does not find them all.
        """
        found = set()
        for exchange in exchanges:
            probes = [*(turn.text for turn in exchange.context if turn.speaker == "tester"), exchange.probe]
            topic = topic_of(probes[-1 - self.delay]) if len(probes) > self.delay else None
            if topic in self.weak_topics and is_rude(exchange.response):
                found.add(topic)
        return found


def named_world(name: str | None) -> World | None:
    """The world that `--world` names: a folder's, "embedded" or "delayed"; none without a name."""
    return None if not name else load_world(EMBEDDED.get(name, name))


def load_world(path: str | Path | None = None) -> World:
    """The world in a folder that `astra-trl sandbox build` wrote; without a path, the embedded one."""
    path = EMBEDDED_WORLD if path is None else Path(path)
    file = path / "world.json"
    try:
        world = parse_object(file.read_text(encoding="utf-8")) if file.exists() else {}
        tester = path / world.get("tester", "tester")  # which another world's may be
        parts = {"world.json": file, "tester": tester, "target": path / "target"}
        if missing := [name for name, part in parts.items() if not part.exists()]:
            raise InputError(
                f"'{path}' is not a sandbox world, it has no {', '.join(missing)}: "
                "write one with `astra-trl sandbox build --output DIR`"
            )
        named = [world[name] for name in ("weak_topics", "topics", "rude_words")] + list(world["openings"].values())
        if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in named):
            raise ValueError("topics, words and openings are no lists of texts")
        return World(
            path=path,
            tester=str(tester),
            target=str(path / "target"),
            weak_topics=tuple(world["weak_topics"]),
            topics=tuple(world["topics"]),
            rude_words=tuple(world["rude_words"]),
            delay=int(world.get("delay", 0)),
            openings_by_split={split: tuple(texts) for split, texts in world["openings"].items()},
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' does not describe a sandbox world: {error!r}") from error
