"""The sampling loop: one token a row and step, from the cache."""

from typing import TYPE_CHECKING

import torch

from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.sampling import TokenSampler

if TYPE_CHECKING:
    from astra_trl.backends.hf.backend import HFBackend

DROP_SHARE = 0.25  # of rows that have ended, from which on a step goes on without them


def decode(
    backend: "HFBackend",
    held: KeyValues,
    slots: list[int],
    logits: torch.Tensor,
    prompts: list[list[int]],
    keys: list[int],
) -> tuple[list[list[int]], list[list[list[float]]], list[int]]:
    """Sampled ids and their log-probabilities (see `TokenSampler`), a row each, up to and including the first end of
    sequence; and the slots where the rows lie now.

    `held` holds the prompts in these slots, with room for the utterance, and `logits` (slots, vocabulary) follow them.
    Afterwards it holds what the conversation goes on from: no end of sequence, and nothing after it. Rows that have
    ended go behind the others in the cache, and the steps that follow leave them out.
    """
    count, device, steps = len(prompts), held.mask.device, backend.sampling.max_new_tokens
    row_of = inverse(slots)
    sampler = TokenSampler(backend.sampling, sorted(backend.eos), keys, prompts, device, backend.untempered)
    # By row: a row keeps its number, whatever slot it goes to.
    ids = torch.zeros((count, steps), dtype=torch.long, device=device)
    logprobs = torch.zeros((count, steps, 1 + backend.untempered), device=device)
    position = held.mask.sum(-1)[torch.tensor(slots, device=device)]
    lengths, fed = [steps] * count, [0] * count
    start, active = held.length, count
    rows = torch.tensor(row_of, device=device)
    going = [True] * count  # by slot
    for step in range(steps):
        ids[rows, step], logprobs[rows, step] = sampler(logits, rows, step)
        for slot, ended in enumerate(backend.ends(ids[rows, : step + 1]).tolist()):
            if ended and going[slot]:
                going[slot] = False
                lengths[row_of[slot]] = step + 1
        remaining = sum(going[:active])
        if step + 1 == steps or not remaining:
            break
        if active - remaining >= DROP_SHARE * active:
            behind = [slot for slot in range(remaining) if not going[slot]]
            ahead = [slot for slot in range(remaining, active) if going[slot]]
            held.exchange(behind, ahead)
            for one, other in zip(behind, ahead, strict=True):
                row_of[one], row_of[other] = row_of[other], row_of[one]
                going[one], going[other] = True, False
            for slot in range(remaining, active):
                fed[row_of[slot]] = step
            active = remaining
            rows = torch.tensor(row_of[:active], device=device)
        column = start + step
        held.mask[:active, column] = 1
        output = backend.forward(
            input_ids=ids[rows, step, None],
            attention_mask=backend.attention_mask(held.mask[:active, : column + 1], 1),
            position_ids=position[rows, None] + step,
            past_key_values=held.at(slice(0, active), column),
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        held.length = column + 1
    for slot in range(active):
        fed[row_of[slot]] = held.length - start
    sampled = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    kept = [
        min(length - (row[-1] in backend.eos), count) for row, length, count in zip(sampled, lengths, fed, strict=True)
    ]
    counts = torch.tensor([kept[row] for row in row_of], device=device)
    columns = torch.arange(held.length - start, device=device)
    held.mask[:, start : held.length] = columns < counts[:, None]
    held.ids = [prompts[row] + sampled[row][: kept[row]] for row in row_of]
    return (
        sampled,
        [row[:length] for row, length in zip(logprobs.tolist(), lengths, strict=True)],
        inverse(row_of),
    )


def inverse(order: list[int]) -> list[int]:
    """Where in the order each number stands."""
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return places
