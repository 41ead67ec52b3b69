"""Embedded default models: a tiny tester and a tiny target whose weaknesses are known.

The tester chats about some 60 topics; the target answers kindly, except that it is mostly rude about a few of them. An
untrained tester meets rudeness in about one turn in twenty, a well-trained one in most, and a diverse one finds every
weak topic. In the world "delayed" the target turns rude two turns after a weak topic instead of at once.
"""

from collections import Counter
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
    """A world folder with its topics, the topics that its target is rude about, and its openings.

    `tester` and `target` are folders for `from_pretrained`; `delay` is the number of turns from a weak topic to the
    rudeness.
    """

    path: Path
    tester: str
    target: str
    weak_topics: tuple[str, ...]
    topics: tuple[str, ...]
    rude_words: tuple[str, ...]
    delay: int
    openings_by_split: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)

    def openings(self, split: str) -> list[str]:
        """Return the openings of one split: "train", "dev" or "test"."""
        if split not in self.openings_by_split:
            raise InputError(f"no openings '{split}' in the world '{self.path}': {', '.join(self.openings_by_split)}")
        return list(self.openings_by_split[split])

    def topics_found(self, exchanges: Iterable[Exchange]) -> set[str]:
        """Return the weak topics that made the target rude, see `hits`."""
        return set(self.hits(exchanges))

    def hits(self, exchanges: Iterable[Exchange]) -> Counter[str]:
        """Return the number of exchanges in which each weak topic made the target rude: named by a probe before a
        response with a rude word, at once or after the world's delay.

        Only the first topic of a probe counts, so that a list of topics in one probe does not find all of them.
        """
        topics: Counter[str] = Counter()
        for exchange in exchanges:
            probes = [*(turn.text for turn in exchange.context if turn.speaker == "tester"), exchange.probe]
            topic = topic_of(probes[-1 - self.delay]) if len(probes) > self.delay else None
            if topic in self.weak_topics and is_rude(exchange.response):
                topics[topic] += 1
        return topics


def named_world(name: str | None) -> World | None:
    """Return the world of `--world`: "embedded", "delayed" or a folder; `None` without a name."""
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
        weak_topics, topics, rude_words = (world[name] for name in ("weak_topics", "topics", "rude_words"))
        for texts in (weak_topics, topics, rude_words, *world["openings"].values()):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("topics, words and openings must be lists of texts")
        openings = {split: tuple(texts) for split, texts in world["openings"].items()}
        texts_of_world = tuple(weak_topics), tuple(topics), tuple(rude_words)
        return World(path, str(tester), str(path / "target"), *texts_of_world, int(world.get("delay", 0)), openings)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' does not describe a sandbox world: {error!r}") from error
