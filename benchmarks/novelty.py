"""Cost of the novelty terms' memory: to score against it, to add to it, to save and to load it.

    python -m benchmarks.novelty --history 100000 --embedder sentence-transformers/all-MiniLM-L6-v2

Probes are synthetic: 5 to 25 words with the frequencies of English (Zipf), out of 20,000 synthetic ones or, with
`--embedder`, out of the model's vocabulary. Without it, the vectors are random and cost nothing.
"""

import argparse
import json
import random
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import psutil

from astra_trl.conversation import Exchange
from astra_trl.embedding import SentenceEmbedder, load_embedder
from astra_trl.rewards.novelty import CosineNovelty, SelfBLEUNovelty
from astra_trl.tree import Node

LETTERS = "etaoinshrdlucmfwyp"
VOCABULARY, DIMENSIONS = 20_000, 384


def make_words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=2 + int(rng.gammavariate(3, 1.2)))) for _ in range(VOCABULARY)]


def words_of(embedder: SentenceEmbedder) -> list[str]:
    """Return the words of the model's vocabulary, most frequent first, which is BERT's order."""
    vocabulary = embedder.model.tokenizer.get_vocab()
    return [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isascii() and word.isalpha()]


def make_probes(rng: random.Random, words: list[str], count: int) -> list[Node]:
    frequencies = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return [
        Node(Exchange((), " ".join(rng.choices(words, cum_weights=frequencies, k=rng.randint(5, 25))), ""), [], [])
        for _ in range(count)
    ]


def random_vectors(texts: Sequence[str]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(texts[0].encode())).standard_normal((len(texts), DIMENSIONS))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def format_seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):>9.3f} s  ({min(values):.3f}-{max(values):.3f})"


def measure(
    name: str, make: Callable[[], SelfBLEUNovelty | CosineNovelty], probes: list[Node], batch: int, turns: int
) -> None:
    history, rest = probes[: -batch * (turns + 1)], probes[-batch * (turns + 1) :]
    batches = [rest[start : start + batch] for start in range(0, len(rest), batch)]
    process, term = psutil.Process(), make()
    term(batches[0])  # so that the model's own memory does not count
    before = process.memory_info().rss
    filling = seconds(
        lambda: [term.remember(history[start : start + batch]) for start in range(0, len(history), batch)]
    )
    memory = process.memory_info().rss - before
    print(f"{name}: {len(history):,} probes, remembered in {filling:.1f} s, {memory / 1e6:,.0f} MB")
    scoring = [seconds(lambda nodes=nodes: term(nodes)) for nodes in batches]
    print(f"  score {batch:<18}{format_seconds(scoring[1:])}")  # the first warms up
    remembering = [seconds(lambda nodes=nodes: term.remember(nodes)) for nodes in batches]
    print(f"  remember {batch:<15}{format_seconds(remembering[1:])}")
    saving = [seconds(lambda: json.dumps(term.state_dict())) for _ in range(turns)]
    state = json.dumps(term.state_dict())
    print(f"  save {len(state) / 1e6:>6.2f} MB          {format_seconds(saving)}")
    expected, again = term(batches[0]), make()
    print(f"  load                  {format_seconds([seconds(lambda: again.load_state_dict(json.loads(state)))])}")
    assert again(batches[0]) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--embedder", help="Hub id or folder of a model of sentence-transformers")
    args = parser.parse_args()
    rng, embed = random.Random(0), load_embedder(args.embedder) if args.embedder else random_vectors
    words = words_of(embed) if isinstance(embed, SentenceEmbedder) else make_words(rng)
    probes = make_probes(rng, words, args.history + args.batch * (args.turns + 1))
    measure("SelfBLEUNovelty", lambda: SelfBLEUNovelty(max_history=args.history), probes, args.batch, args.turns)
    # The history is a sum: with a model, a short one measures the same and takes minutes less.
    kept = probes[-args.batch * (args.turns + 5) :] if args.embedder else probes
    name = f"CosineNovelty, {args.embedder or 'random vectors'}"
    measure(name, lambda: CosineNovelty(embed), kept, args.batch, args.turns)


if __name__ == "__main__":
    main()
