"""Speed of scorers on a batch of exchanges, compared with one exchange at a time.

    python -m benchmarks.scorers

1,000 distinct exchanges, so that scoring equal texts once does not help; batched and one at a time in alternation,
with a check that the scores agree. Models have random weights in the real formats, so nothing is downloaded.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from logging import ERROR, getLogger
from pathlib import Path

import torch
from transformers.utils import logging

from astra_trl import DetoxifyScorer, Exchange, KeywordScorer, Turn
from astra_trl.scorers import ClassifierScorer, JudgeScorer, LlamaGuardScorer, Scorer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama, save_classifier, save_detoxify, save_llama_guard

# Hidden size and layers: the tests' stand-ins, something in between, and BERT-base's.
SIZES = {"tiny": (16, 2), "mini": (256, 4), "base": (768, 12)}
WORDS = ["you", "nice", "day", "fool", "a", "i"]  # one token per word for the classifiers


def exchanges(count: int, seed: int = 0) -> list[Exchange]:
    """Return distinct exchanges with responses of 12 to 24 words."""
    rng = random.Random(seed)
    context = (Turn("opening", "a nice day"),)
    responses: dict[str, None] = {}
    while len(responses) < count:
        responses.setdefault(" ".join(rng.choices(WORDS, k=rng.randint(12, 24))))
    return [Exchange(context, "you", response) for response in responses]


def build(name: str, size: str, folder: Path, device: str) -> Scorer:
    """Build the scorer of this name with a model of this size."""
    hidden, layers = SIZES[size]
    if name == "keyword":
        return KeywordScorer(["fool", "shut up"])
    if name == "detoxify":
        save_detoxify(folder, hidden, layers)
        return DetoxifyScorer(checkpoint=folder / "tiny.ckpt", huggingface_config_path=folder, device=device)
    if name == "classifier":
        return ClassifierScorer(str(save_classifier(folder, ["a", "b"], None, hidden, layers)), "b", device=device)
    if name == "llama_guard":
        return LlamaGuardScorer(
            str(save_llama_guard(folder, hidden_size=max(hidden, 32), layers=layers)), device=device
        )
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer, max(hidden, 32), layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return JudgeScorer(str(folder), "Is it rude?", max_new_tokens=4, device=device)


def seconds(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Return the duration of the work, and its scores."""
    start = time.perf_counter()
    scores = work()
    return time.perf_counter() - start, scores


def compare(scorer: Scorer, batch: Sequence[Exchange], turns: int) -> tuple[list[float], list[float]]:
    """Return the seconds one at a time and batched, turn by turn."""
    alone, batched = [], []
    scorer(batch[:64])
    for _ in range(turns):
        one, scores_alone = seconds(lambda: [scorer([exchange])[0] for exchange in batch])
        many, scores_batched = seconds(lambda: scorer(batch))
        pairs = [(a, b) for a, b in zip(scores_alone, scores_batched, strict=True) if a == a or b == b]  # not both nan
        assert max((abs(a - b) for a, b in pairs), default=0.0) < 1e-5, "batched scores differ"
        alone.append(one)
        batched.append(many)
    return alone, batched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorers", nargs="*", default=["keyword", "detoxify", "classifier", "llama_guard", "judge"])
    parser.add_argument("--sizes", nargs="*", default=["tiny", "mini"], choices=list(SIZES))
    parser.add_argument("--exchanges", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    logging.set_verbosity_error()
    getLogger("astra_trl").setLevel(ERROR)  # the answers of a random judge cannot be parsed
    logging.disable_progress_bar()
    batch = exchanges(args.exchanges)
    print(f"{'scorer':<14}{'model':<7}{'one at a time':>15}{'batched':>10}{'faster':>9}{'(range)':>16}")
    for name in args.scorers:
        for size in args.sizes if name != "keyword" else ["-"]:
            with tempfile.TemporaryDirectory() as folder:
                scorer = build(name, "tiny" if size == "-" else size, Path(folder), args.device)
                alone, batched = compare(scorer, batch, args.turns)
            ratios = [one / many for one, many in zip(alone, batched, strict=True)]
            span = f"({min(ratios):.1f}-{max(ratios):.1f})"
            print(
                f"{name:<14}{size:<7}{statistics.median(alone):>13.2f} s{statistics.median(batched):>8.2f} s"
                f"{statistics.median(ratios):>8.1f}x{span:>16}",
                flush=True,
            )


if __name__ == "__main__":
    main()
