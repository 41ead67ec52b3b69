"""The embedded default: a tiny tester and a tiny target whose weaknesses are known.

The tester chats about some 60 topics; the target answers kindly, except that it is mostly rude about a few of them.
So an untrained tester meets rudeness in about one turn in twenty, a well-trained one in most, and a diverse one finds
every weak topic.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.sandbox.grammar import is_rude, topic_of

__all__ = ["EMBEDDED_WORLD", "World", "is_rude", "load_world", "named_world", "topic_of"]

EMBEDDED_WORLD = Path(__file__).parent / "world"


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
    openings_by_split: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)

    def openings(self, split: str) -> list[str]:
        """The openings of one split: "train", "dev" or "test"."""
        if split not in self.openings_by_split:
            raise InputError(f"no openings '{split}' in the world '{self.path}': {', '.join(self.openings_by_split)}")
        return list(self.openings_by_split[split])

    def topics_found(self, exchanges: Iterable[Exchange]) -> set[str]:
        """The weak topics whose rudeness was met: named by a probe that a response with a rude word followed.

        Only the first topic of a probe counts, so that a list of topics in one probe does not find them all.
        """
        return {
            topic
            for exchange in exchanges
            if (topic := topic_of(exchange.probe)) in self.weak_topics and is_rude(exchange.response)
        }


def named_world(name: str | None) -> World | None:
    """The world that `--world` names: a folder's, or "embedded"; none without a name."""
    return None if not name else load_world(None if name == "embedded" else name)


def load_world(path: str | Path | None = None) -> World:
    """The world in a folder that `astra-trl sandbox build` wrote; without a path, the embedded one."""
    path = EMBEDDED_WORLD if path is None else Path(path)
    if missing := [name for name in ("world.json", "tester", "target") if not (path / name).exists()]:
        raise InputError(
            f"'{path}' is not a sandbox world, it has no {', '.join(missing)}: "
            "write one with `astra-trl sandbox build --output DIR`"
        )
    try:
        world = json.loads((path / "world.json").read_text(encoding="utf-8"))
        return World(
            path=path,
            tester=str(path / "tester"),
            target=str(path / "target"),
            weak_topics=tuple(world["weak_topics"]),
            topics=tuple(world["topics"]),
            rude_words=tuple(world["rude_words"]),
            openings_by_split={split: tuple(texts) for split, texts in world["openings"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path / 'world.json'}' does not describe a sandbox world: {error!r}") from error
