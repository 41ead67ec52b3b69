"""Speed of growing conversation trees: node by node, level by level with `generate`, and with this package's engine.

    python -m benchmarks.rollout --shape llama256

The ways alternate in one process, and ratios are taken within a turn, because a machine's speed drifts. Models have
random weights, so nothing is downloaded; those of `sandbox` are the embedded ones, whose utterances end early.
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from astra_trl import ASTSampler, HFBackend, SamplingParams, System
from astra_trl.backends.base import derive_seed
from astra_trl.rewards import Harm, Reward
from astra_trl.sandbox import load_world
from astra_trl.systems.astprompter import ASTPROMPTER_SAMPLING


def llama(**sizes: int) -> Callable[[], PreTrainedModel]:
    return lambda: LlamaForCausalLM(LlamaConfig(max_position_embeddings=8192, **sizes))


LLAMA_3 = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama256": llama(
        vocab_size=32_000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "llama-1b": llama(**LLAMA_3, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16),
    "llama-8b": llama(**LLAMA_3, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32),
}
# Openings, width, depth, new tokens of the prototype's figures, and of the sandbox recipe.
DEFAULTS = {"sandbox": (7, 4, 3, 24), "llama256": (8, 2, 3, 32), "gpt2": (8, 2, 3, 32)}


@dataclass
class Workload:
    """Two models, and the trees that they grow."""

    tester: HFBackend
    target: HFBackend
    openings: list[str]
    width: int
    depth: int


def words_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are `w0`, `w1`, ...: encoding the text of any ids gives the same ids."""
    words = {f"w{index}": index for index in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def workload(args: argparse.Namespace) -> Workload:
    """Build the models on the device, and openings of 100 to 200 tokens."""
    torch.manual_seed(0)
    rng = random.Random(0)
    count, width, depth, new_tokens = DEFAULTS.get(args.shape, (32, 2, 3, 32))
    count, width = args.openings or count, args.width or width
    max_rows = args.max_rows or (512 if args.shape == "sandbox" else 128)
    depth, new_tokens = args.depth or depth, args.new_tokens or new_tokens
    if args.shape == "sandbox":
        world = load_world()
        sampling = SamplingParams(max_new_tokens=new_tokens)
        tester, target = (
            HFBackend.from_pretrained(folder, device=args.device, sampling=sampling, max_rows=max_rows)
            for folder in (world.tester, world.target)
        )
        return Workload(tester, target, rng.choices(world.openings("train"), k=count), width, depth)
    # No early end: every way samples the same number of tokens.
    sampling = replace(ASTPROMPTER_SAMPLING, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    device, dtype = torch.device(args.device), torch.float32 if args.device == "cpu" else torch.bfloat16

    def build() -> PreTrainedModel:
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                return SHAPES[args.shape]().eval()
        finally:
            torch.set_default_dtype(default)

    tester = build()
    tokenizer = words_tokenizer(tester.config.vocab_size)
    tester.generation_config.eos_token_id = tokenizer.eos_token_id
    fields: dict[str, Any] = {"sampling": sampling, "separator": "w1", "max_rows": max_rows}
    openings = [
        " ".join(f"w{rng.randrange(2, tester.config.vocab_size - 1)}" for _ in range(rng.randint(100, 200)))
        for _ in range(count)
    ]
    if args.copies == 1:
        adapted = get_peft_model(tester, LoraConfig(target_modules="all-linear"))
        first = HFBackend(adapted, tokenizer, **fields)
        return Workload(first, HFBackend(adapted, tokenizer, use_adapter=False, **fields), openings, width, depth)
    target = build()
    if args.copies == 3:
        target.baseline_weights = build()
    return Workload(
        HFBackend(tester, tokenizer, **fields), HFBackend(target, tokenizer, **fields), openings, width, depth
    )


# -- the ways; each returns the number of sampled tokens


def engine(work: Workload) -> int:
    """Grow the trees with this package."""
    reward = Reward({"harm": (1.0, Harm("harm"))})
    system = System(work.tester, work.target, {"harm": lambda exchanges: [0.0] * len(exchanges)}, reward)
    sampler = ASTSampler(system, work.openings, work.width, work.depth)
    trees = sampler.grow(work.openings, range(len(work.openings)))
    exchanges = [node.exchange for tree in trees for node in tree.nodes()]
    return sum(
        len(ids)
        for backend, texts in (
            (work.tester, [exchange.probe for exchange in exchanges]),
            (work.target, [exchange.response for exchange in exchanges]),
        )
        for ids in backend.tokenizer(texts, add_special_tokens=False)["input_ids"]
    )


def engine_doubled(work: Workload) -> int:
    """Grow the trees of twice the openings with this package."""
    return engine(replace(work, openings=work.openings * 2))


def plain_generate(backend: HFBackend, rows: Sequence[list[int]]) -> list[list[int]]:
    """Return ids sampled by transformers' `generate`, like a script that does not know of trees."""
    params = backend.sampling
    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=params.min_new_tokens,
        eos_token_id=sorted(backend.eos),
        pad_token_id=min(backend.eos),
    )
    ids, mask = backend.left_padded(rows)
    output = backend.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    sampled = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((at for at, token in enumerate(row) if token in backend.eos), len(row))
        sampled.append(row[:end])
    return sampled


def plain_score(backend: HFBackend, rows: Sequence[list[int]], added: Sequence[list[int]]) -> None:
    """Compute the log-probabilities of the added ids in a separate forward pass."""
    ids, mask = backend.left_padded([row + new for row, new in zip(rows, added, strict=True)])
    keep = max(len(new) for new in added) + 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = backend.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
    logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -keep + 1 :, None]).cpu()


def with_generate(work: Workload, at_a_time: Callable[[int], int]) -> int:
    """Grow the trees level by level, with `at_a_time(rows)` rows per call."""
    total = 0
    separators = [backend.dialogue.separator_ids for backend in (work.tester, work.target)]
    rows = [
        tuple(row.ids for row in rows)
        for rows in zip(
            work.tester.dialogue.open(work.openings), work.target.dialogue.open(work.openings), strict=True
        )
    ]
    for _ in range(work.depth):
        rows = [row for row in rows for _ in range(work.width)]
        step, grown = at_a_time(len(rows)), []
        for start in range(0, len(rows), step):
            ours, theirs = (list(side) for side in zip(*rows[start : start + step], strict=True))
            with work.tester.inference():
                probes = plain_generate(work.tester, ours)
            texts = work.tester.tokenizer.batch_decode(probes)
            heard = work.target.tokenizer(texts, add_special_tokens=False)["input_ids"]
            with work.target.inference():
                plain_score(work.target, theirs, heard)
                theirs = [row + ids + separators[1] for row, ids in zip(theirs, heard, strict=True)]
                responses = plain_generate(work.target, theirs)
            texts = work.target.tokenizer.batch_decode(responses)
            heard = work.tester.tokenizer(texts, add_special_tokens=False)["input_ids"]
            for our, their, probe, response, answer in zip(ours, theirs, probes, responses, heard, strict=True):
                grown.append((our + probe + separators[0] + answer + separators[0], their + response + separators[1]))
                total += len(probe) + len(response)
        rows = grown
    return total


def node_by_node(work: Workload) -> int:
    """Grow the trees with one call per node's children, like published code."""
    return with_generate(work, lambda rows: work.width)


def level_batched(work: Workload) -> int:
    """Grow the trees with one call per level, in the engine's chunks."""
    return with_generate(work, lambda rows: min(rows, work.tester.max_rows))


def lower_bound(work: Workload) -> int:
    """Decode with the engine from a prompt of one token: the same numbers of rows and tokens, without any context."""
    total = 0
    for turn in range(1, work.depth + 1):
        rows = len(work.openings) * work.width**turn
        for start in range(0, rows, work.tester.max_rows):
            count = min(work.tester.max_rows, rows - start)
            for backend in (work.tester, work.target):
                bare = replace(backend, separator="")
                session = bare.open([""] * count, seeds=[derive_seed(start, row) for row in range(count)])
                total += sum(len(ids) - (ids[-1] in backend.eos) for ids in (s.ids for s in session.sample()))
    return total


WAYS = {
    "node by node": node_by_node,
    "level-batched generate": level_batched,
    "engine": engine,
    "engine, openings twice": engine_doubled,
    "lower bound": lower_bound,
}


class PeakMemory:
    """Peak memory (MB) while the context is open: the GPU's, or the process's, sampled every 50 ms."""

    def __init__(self, device: str) -> None:
        self.device, self.megabytes = device, 0.0

    def __enter__(self) -> "PeakMemory":
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return self
        self.process, self.stop = psutil.Process(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.05):
            self.megabytes = max(self.megabytes, self.process.memory_info().rss / 2**20)

    def __exit__(self, *exception: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.megabytes = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.stop.set()
            self.thread.join()


def copy_bandwidth() -> float:
    """Return the bytes per second that the GPU reads and writes when it copies 4 GiB."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * 2**32 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("sandbox", *SHAPES), default="llama256")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name in ("width", "depth", "openings", "new-tokens"):
        parser.add_argument(f"--{name}", type=int, help="default: by shape")
    parser.add_argument(
        "--max-rows", type=int, help="conversations per batch; default: 128, in sandbox 512 like its recipe"
    )
    parser.add_argument("--copies", type=int, choices=(1, 2, 3), default=2, help="of the weights in all roles")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--turns", type=int, default=3, help="runs of each way, after one that is not counted")
    args = parser.parse_args()
    work = workload(args)
    forwards = {"count": 0}
    for backend in (work.tester, work.target):

        def count_and_call(original: Callable[..., Any] = backend.forward, **inputs: Any) -> Any:
            forwards["count"] += 1
            return original(**inputs)

        backend.forward = count_and_call  # type: ignore[method-assign]
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    tokens, memory, passes = {}, {}, {}
    for turn in range(args.turns + 1):
        for way in args.ways:
            if turn == 0 and way == "node by node" and args.turns > 1:
                continue  # needs no warm-up, and takes longest
            forwards["count"] = 0
            with PeakMemory(args.device) as peak:
                start = time.perf_counter()
                tokens[way] = WAYS[way](work)
                if args.device == "cuda":
                    torch.cuda.synchronize()
                elapsed = time.perf_counter() - start
            if turn:
                seconds[way].append(elapsed)
                memory[way], passes[way] = max(memory.get(way, 0.0), peak.megabytes), forwards["count"]
    report(args, work, seconds, tokens, memory, passes)


def report(
    args: argparse.Namespace,
    work: Workload,
    seconds: dict[str, list[float]],
    tokens: dict[str, int],
    memory: dict[str, float],
    passes: dict[str, int],
) -> None:
    """Print the table and, last, a line of JSON."""
    print(f"{args.shape} on {args.device}: {len(work.openings)} openings, width {work.width}, depth {work.depth}")
    print(f"{'way':<24}{'seconds':>9}{'tokens/s':>10}{'engine is':>12}{'(range)':>16}{'peak MB':>9}")
    # Seconds per token, because utterances that end early have different numbers of tokens.
    pace = {way: [value / tokens[way] for value in values] for way, values in seconds.items()}
    result: dict[str, Any] = {"shape": args.shape, "device": args.device, "copies": args.copies}
    for way, values in seconds.items():
        ratios = [other / own for other, own in zip(pace[way], pace.get("engine", pace[way]), strict=True)]
        median, rate = statistics.median(values), 1 / statistics.median(pace[way])
        spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"{way:<24}{median:>9.2f}{rate:>10.0f}{statistics.median(ratios):>11.2f}x{spread:>16}{memory[way]:>9.0f}"
        )
        if way in ("node by node", "level-batched generate"):
            result["vs_" + way.removesuffix(" generate").replace(" ", "_").replace("-", "_")] = statistics.median(
                ratios
            )
        elif way == "lower bound":
            result["vs_lower_bound"] = statistics.median([1 / ratio for ratio in ratios])
        elif way == "engine, openings twice":
            costs = [twice / once for twice, once in zip(values, seconds.get("engine", values), strict=True)]
            result["cost_of_twice_the_openings"] = statistics.median(costs)
    if "engine" in seconds:
        result["seconds"] = statistics.median(seconds["engine"])
        result["tokens_per_second"] = 1 / statistics.median(pace["engine"])
        result["peak_memory_mb"] = memory["engine"]
        if args.device == "cuda":
            weights = sum(parameter.nbytes for parameter in work.tester.model.parameters())
            bound = passes["engine"] * weights / copy_bandwidth()
            result["bandwidth_bound_share"] = bound / result["seconds"]
            print(
                f"reading the weights once per forward pass takes {result['bandwidth_bound_share']:.0%} of that time"
            )
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in result.items()}))


if __name__ == "__main__":
    main()
