"""Lower bounds of what models must compute for trees and for training on them, and the rates of a GPU."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from astra_trl import HFBackend
from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.decoding import decode
from astra_trl.backends.hf.model import base_of
from astra_trl.rollout.records import Record
from astra_trl.trainers.packing import shared_length
from benchmarks.clock import BACKWARD, FORWARD, REFERENCE, Clock
from benchmarks.workloads import Workload, grow, synchronize, utterance_lengths

# Tokens per forward pass without padding: more are not faster, but take more memory.
BLOCK = {"cpu": 512, "cuda": 4096}


def packed(tokens: float, pairs: float, block: int) -> tuple[list[int], int]:
    """Return numbers of rows, one per forward pass of about `block` tokens, and the length of all rows.

    They have that number of tokens in total, no padding, and nearly as many pairs of a token and an earlier one: texts
    of several lengths cost as much if each token passes through the model once, in batches of the best size.
    """
    rows = math.ceil(tokens / (2 * pairs / tokens))  # rounded up, so that no row is longer than the longest text
    step = max(1, block * rows // round(tokens))
    return [min(step, rows - start) for start in range(0, rows, step)], max(1, round(tokens / rows))


# -- rollouts


@dataclass
class Turn:
    """A turn of the trees: its number of nodes, and mean numbers of tokens."""

    nodes: int
    context: int  # of the tester
    probe: int
    response: int


@cache
def turns_of(work: Workload) -> list[Turn]:
    """Return the turns of the trees as the engine grows them."""
    turns, nodes = [], [node for tree in grow(work) for node in tree.children]
    while nodes:
        lengths = zip(*utterance_lengths(work, nodes), strict=True)
        context = statistics.mean(len(work.tester.fit(node.prompt_ids)) for node in nodes)
        turns.append(Turn(len(nodes), round(context), *(max(1, round(statistics.mean(part))) for part in lengths)))
        nodes = [child for node in nodes for child in node.children]
    return turns


def decode_rows(backend: HFBackend, rows: int, columns: int, tokens: int) -> int:
    """Sample that many tokens per row, from a cache that holds as many columns of zeros; return their number."""
    sampling = replace(backend.sampling, min_new_tokens=tokens, max_new_tokens=tokens)
    model = replace(backend, sampling=sampling)
    for start in range(0, rows, model.max_rows):
        count = min(model.max_rows, rows - start)
        past = KeyValues(model.cache_spec, count, columns + tokens)
        past.mask[:, :columns], past.length = 1, columns
        logits = torch.zeros((count, model.vocabulary), dtype=model.model.dtype, device=model.device)
        with model.inference():
            decode(model, past, list(range(count)), logits, [[0] * columns] * count, list(range(count)))
    return rows * tokens


def feed_rows(backend: HFBackend, rows: Sequence[int], columns: int, width: int, logits: int) -> None:
    """Pass `width` tokens per row through the model, after as many columns of zeros, in forward passes of so many
    rows."""
    backend = replace(backend)  # with a memory budget of its own, which is not limited
    positions = torch.arange(columns, columns + width, device=backend.device)[None]
    for count in rows:
        past = KeyValues(backend.cache_spec, count, columns + width)
        past.mask[:] = 1
        with backend.inference():
            backend.forward(
                input_ids=torch.zeros((count, width), dtype=torch.long, device=backend.device),
                attention_mask=backend.attention_mask(past.mask, width) if columns else None,
                position_ids=positions.expand(count, -1),
                past_key_values=past.at(slice(0, count), columns),
                use_cache=True,
                logits_to_keep=logits,
            )


def feed_utterances(backend: HFBackend, rows: int, columns: int, width: int, logits: int) -> None:
    """Pass utterances of `width` tokens through the model in batches of the best size."""
    step = max(1, BLOCK[backend.device.type] // width)
    feed_rows(backend, [min(step, rows - start) for start in range(0, rows, step)], columns, width, logits)


def lower_bound(work: Workload) -> int:
    """Compute what each unique token of the trees costs if it passes through each model once, without padding.

    These are the openings (`packed`), each utterance and separator that a side hears after its context, and each
    sampled token, with attention over as many columns as conversations of that turn have on average. Copies,
    holes and tokenisation cost nothing, and the cache only what a forward pass reads and writes. Tokens are sampled by
    the engine's own loop. Returns the number of sampled tokens.
    """
    total, separator = 0, len(work.tester.dialogue.separator_ids)
    for backend in (work.tester, work.target):
        lengths = [len(backend.fit(row.ids)) for row in backend.dialogue.open(work.openings)]
        pairs = sum(length**2 for length in lengths) / 2
        rows, length = packed(sum(lengths), pairs, BLOCK[backend.device.type])
        feed_rows(backend, rows, 0, length, logits=1)
    for number, turn in enumerate(turns_of(work), 1):
        total += decode_rows(work.tester, turn.nodes, turn.context, turn.probe)
        heard = turn.probe + separator
        feed_utterances(work.target, turn.nodes, turn.context, heard, logits=turn.probe)
        total += decode_rows(work.target, turn.nodes, turn.context + heard, turn.response)
        if number < len(turns_of(work)):
            # The last token that it sampled, and separators around what it hears.
            heard = 1 + separator + turn.response + separator
            feed_utterances(work.tester, turn.nodes, turn.context + turn.probe, heard, logits=1)
    return total


def decoding_alone(work: Workload) -> int:
    """Sample as many tokens in as many rows from prompts of one token."""
    return sum(
        decode_rows(backend, turn.nodes, 1, tokens)
        for turn in turns_of(work)
        for backend, tokens in ((work.tester, turn.probe), (work.target, turn.response))
    )


# -- training


def unique_tokens(records: Sequence[Record]) -> tuple[int, int, float]:
    """Return the tokens of pairs or groups, those of the probes among them, and the pairs of a token and an earlier
    one, with each beginning that contexts share counted once.

    This is less than a trainer can reach, as the weights of one step are not those of another, so that only records
    of one batch can share their contexts.
    """
    rows = sorted(
        (record["prompt_ids"] + probe, len(record["prompt_ids"]))
        for record in records
        for probe in record.get("probe_ids") or (record["chosen_ids"], record["rejected_ids"])
    )
    tokens, of_probes, pairs, last = 0, 0, 0.0, list[int]()
    for ids, context in rows:
        shared = shared_length(last, ids)
        tokens += len(ids) - shared
        of_probes += len(ids) - max(shared, context)
        pairs += (len(ids) ** 2 - shared**2) / 2
        last = ids
    return tokens, of_probes, pairs


def train_once(trainer: Any, records: Sequence[Record], clock: Clock) -> float:
    """Pass each unique token of the records forward and backward through the tester once, and forward through the
    reference if there is one: in batches of the best size without padding, with logits of as many tokens as probes
    have, and without gradient checkpointing. Returns the number of operations, those of attention left out."""
    model, device = trainer.model.train(), trainer.model.device
    tokens, of_probes, pairs = unique_tokens(records)
    rows, length = packed(tokens, pairs, BLOCK[device.type])
    keep = max(1, round(length * of_probes / tokens))

    def loss_of(model: Any, count: int) -> torch.Tensor:
        ids = torch.zeros((count, length), dtype=torch.long, device=device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        return cross_entropy(logits.flatten(0, 1).float(), ids[:, -keep:].flatten())

    for count in rows:
        with clock.timing(FORWARD):
            loss = loss_of(model, count)
        with clock.timing(BACKWARD):
            loss.backward()
        if trainer.args.beta:
            without_adapter = nullcontext() if trainer.ref_model else model.disable_adapter()
            with clock.timing(REFERENCE), torch.no_grad(), without_adapter:
                loss_of(trainer.ref_model or model, count)
    base = sum(parameter.numel() for parameter in base_of(model).parameters())
    # 2 forward, 2 for the gradients of activations, 2 for those of all weights, 2 for the reference.
    trains_all = all(parameter.requires_grad for parameter in model.parameters())
    return (4 + 2 * trains_all + 2 * bool(trainer.args.beta)) * base * tokens


# -- rates of a GPU


def _median_seconds(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(6):
        synchronize("cuda")
        start = time.perf_counter()
        work()
        synchronize("cuda")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def copy_bandwidth() -> float:
    """Return the bytes per second that the GPU reads and writes when it copies 4 GiB."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**32 / _median_seconds(lambda: target.copy_(source))


def matmul_rate() -> float:
    """Return the operations per second of the GPU in a product of two bfloat16 matrices of 8,192 by 8,192."""
    one, other = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * 8192**3 / _median_seconds(lambda: one @ other)
