"""Workloads of the speed benchmarks: models, tokenizers, openings; and the measurement of memory.

Models of a shape have random weights, so nothing is downloaded; those of `sandbox` are the embedded ones, whose
utterances end early. `--model` takes real ones from a folder.
"""

import argparse
import ctypes
import gc
import random
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from astra_trl import ASTSampler, HFBackend, SamplingParams, System
from astra_trl.rewards import Harm, Reward
from astra_trl.sandbox import load_world
from astra_trl.systems.astprompter import ASTPROMPTER_SAMPLING
from astra_trl.tree import Node, Tree


def llama(**sizes: Any) -> Callable[[], PreTrainedModel]:
    return lambda: LlamaForCausalLM(LlamaConfig(max_position_embeddings=8192, **sizes))


def mistral(**sizes: Any) -> Callable[[], PreTrainedModel]:
    return lambda: MistralForCausalLM(MistralConfig(max_position_embeddings=8192, **sizes))


LLAMA_3 = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8}
SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama256": llama(
        vocab_size=32_000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "smollm2": llama(**SMOLLM2),
    # Equal in all but the window, which no conversation outgrows: they grow the same trees.
    "full": mistral(**SMOLLM2, sliding_window=None),
    "sliding": mistral(**SMOLLM2, sliding_window=4096),
    "llama-1b": llama(**LLAMA_3, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16),
    "llama-8b": llama(**LLAMA_3, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32),
}
# Openings, width, depth, new tokens of the prototype's figures, and of the sandbox recipe.
DEFAULTS = {"sandbox": (7, 4, 3, 24), "llama256": (8, 2, 3, 32), "gpt2": (8, 2, 3, 32)}

# Tokens of SmolLM2 in the 2,477 openings of ConvoKit's reddit-corpus-small (train), by their share of shorter ones.
REDDIT_SHARES = (*(step / 20 for step in range(20)), 0.97, 0.98, 0.99, 0.995, 0.999, 1)
REDDIT_TOKENS = (
    *(2, 13, 19, 24, 28, 32, 37, 42, 48, 54, 61, 68, 77, 85, 97, 114, 131, 159, 203, 277),
    *(362, 427, 541, 739, 1603, 3168),
)
# Words that are one token each, after a space, in the usual tokenizers of English.
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "was",
    "for",
    "on",
    "with",
    "he",
    "as",
    "at",
    "by",
    "from",
    "they",
)


@dataclass(eq=False)  # hashable
class Workload:
    """Two models, and the trees that they grow."""

    tester: HFBackend
    target: HFBackend
    openings: list[str]
    width: int
    depth: int


def grow(work: Workload) -> list[Tree]:
    """Grow the trees with this package."""
    reward = Reward({"harm": (1.0, Harm("harm"))})
    system = System(work.tester, work.target, {"harm": lambda exchanges: [0.0] * len(exchanges)}, reward)
    sampler = ASTSampler(system, work.openings, work.width, work.depth)
    return sampler.grow(work.openings, range(len(work.openings)))


def utterance_lengths(work: Workload, nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Return the tokens of each node's probe and response without their ends."""
    params = work.tester.sampling
    if params.min_new_tokens == params.max_new_tokens:  # texts of real tokenizers may be encoded differently
        return [(params.max_new_tokens, params.max_new_tokens)] * len(nodes)
    ids = [
        backend.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for backend, texts in (
            (work.tester, [node.exchange.probe for node in nodes]),
            (work.target, [node.exchange.response for node in nodes]),
        )
    ]
    return [(len(probe), len(response)) for probe, response in zip(*ids, strict=True)]


def add_arguments(parser: argparse.ArgumentParser, number_of_openings: str) -> None:
    """Add the arguments of a workload; the flag for the number of openings has this name."""
    parser.add_argument("--shape", choices=("sandbox", *SHAPES), default="llama256")
    parser.add_argument("--model", metavar="FOLDER", help="real weights and tokenizer, instead of a shape")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--openings",
        choices=("uniform", "reddit"),
        default="uniform",
        help="lengths of openings: 100 to 200 tokens, or those of ConvoKit's Reddit; sandbox has texts of its own",
    )
    parser.add_argument("--longest", type=int, metavar="TOKENS", help="make one of the openings this long")
    parser.add_argument(
        f"--{number_of_openings}", dest="count", type=int, help="number of openings; default: by shape"
    )
    for name in ("width", "depth", "new-tokens"):
        parser.add_argument(f"--{name}", type=int, help="default: by shape")
    parser.add_argument(
        "--max-rows", type=int, help="conversations per batch; default: 128, in sandbox 512 like its recipe"
    )


def workload_name(args: argparse.Namespace) -> str:
    """Return the name of the model that is measured."""
    return Path(args.model).name if args.model else args.shape


def build_workload(args: argparse.Namespace, copies: int) -> Workload:
    """Build the models, with this number of copies of the weights (1: tester and target are one model), and openings.

    Equal arguments give equal weights and openings.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    is_sandbox = args.shape == "sandbox" and not args.model
    count, width, depth, new_tokens = DEFAULTS["sandbox"] if is_sandbox else DEFAULTS.get(args.shape, (32, 2, 3, 32))
    count, width = args.count or count, args.width or width
    depth, new_tokens = args.depth or depth, args.new_tokens or new_tokens
    max_rows = args.max_rows or (512 if is_sandbox else 128)
    if is_sandbox:
        world = load_world()
        sampling = SamplingParams(max_new_tokens=new_tokens)
        tester, target = (
            HFBackend.from_pretrained(folder, device=args.device, sampling=sampling, max_rows=max_rows)
            for folder in (world.tester, world.target)
        )
        return Workload(tester, target, rng.choices(world.openings("train"), k=count), width, depth)
    # No early end: every way samples the same number of tokens.
    sampling = replace(ASTPROMPTER_SAMPLING, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    model = _build_model(args)
    others = [_build_model(args) for _ in range(copies - 1)]
    if args.model:
        tokenizer, separator = AutoTokenizer.from_pretrained(args.model), "\n"
        words = [word for word in WORDS if len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1]
    else:
        vocabulary = model.config.vocab_size
        tokenizer, separator = words_tokenizer(vocabulary), "w1"
        words = [f"w{index}" for index in range(2, vocabulary - 1)]
        for one in (model, *others):
            one.generation_config.eos_token_id = tokenizer.eos_token_id
    tester, target = (
        HFBackend(one, tokenizer, sampling=sampling, separator=separator, max_rows=max_rows)
        for one in (model, others[0] if others else model)
    )
    if copies == 3:
        target.model.baseline_weights = others[1]
    most = (tester.window or sys.maxsize) - 2 * depth * (new_tokens + 8)  # with room for the conversation
    lengths = [min(length, most) for length in draw_lengths(args.openings, count, rng, args.longest)]
    return Workload(tester, target, [" ".join(rng.choices(words, k=length)) for length in lengths], width, depth)


def _build_model(args: argparse.Namespace) -> PreTrainedModel:
    device, dtype = torch.device(args.device), torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return SHAPES[args.shape]().eval()
    finally:
        torch.set_default_dtype(default)


def words_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are `w0`, `w1`, ...: encoding the text of any ids gives the same ids."""
    words = {f"w{index}": index for index in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def draw_lengths(kind: str, count: int, rng: random.Random, longest: int | None) -> list[int]:
    """Return numbers of tokens, one from each of `count` equal parts of the distribution: a few represent it, too."""
    shares = [(part + rng.random()) / count for part in range(count)]
    rng.shuffle(shares)
    if kind == "reddit":
        lengths = [round(float(np.interp(share, REDDIT_SHARES, REDDIT_TOKENS))) for share in shares]
    else:
        lengths = [100 + int(101 * share) for share in shares]
    return lengths if longest is None else [longest, *lengths[1:]]


def median_and_range(ratios: Sequence[float]) -> str:
    """Return two columns of a table."""
    return f"{statistics.median(ratios):>11.2f}x{f'({min(ratios):.2f}-{max(ratios):.2f})':>16}"


# -- memory


class PeakMemory:
    """Peak memory (MB) above that at the start, while the context is open: the GPU's, or the process's, sampled every
    10 ms. Garbage of earlier work does not count."""

    def __init__(self, device: str) -> None:
        self.device, self.megabytes = device, 0.0
        self.process = psutil.Process()

    def __enter__(self) -> "PeakMemory":
        free_memory(self.device)
        self.start = self._allocated()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def _allocated(self) -> float:
        used = torch.cuda.memory_allocated() if self.device == "cuda" else self.process.memory_info().rss
        return used / 2**20

    def _watch(self) -> None:
        while not self.stop.wait(0.01):
            self.megabytes = max(self.megabytes, self._allocated() - self.start)

    def __exit__(self, *exception: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.megabytes = torch.cuda.max_memory_allocated() / 2**20 - self.start
        else:
            self.stop.set()
            self.thread.join()


def free_memory(device: str) -> None:
    """Collect garbage, and return free memory to the system."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
