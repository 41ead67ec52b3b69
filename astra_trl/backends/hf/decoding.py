"""The sampling loop: one token per row and step, with the cache."""

import torch

from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.model import HFModel
from astra_trl.backends.hf.sampling import TokenSampler

MIN_DROP_SHARE = 0.25  # share of ended rows at which they are dropped from the batch


def decode(
    model: HFModel,
    past: KeyValues,
    slots: list[int],
    logits: torch.Tensor,
    prompts: list[list[int]],
    keys: list[int],
) -> tuple[list[list[int]], list[list[list[float]]], list[int]]:
    """Sample an utterance per row, up to and including the first end of sequence.

    `past` holds the prompts in these slots, with room for the utterance, and `logits` (slots, vocabulary) follow them.
    Afterwards it holds what the conversation continues from: no end of sequence, and nothing after it. Ended rows move
    to the end of the cache, and later steps leave them out.

    Returns ids and log-probabilities (see `TokenSampler`) per row, and the new slots of the rows.
    """
    count, device, steps = len(prompts), past.mask.device, model.sampling.max_new_tokens
    row_of = inverse(slots)
    sampler = TokenSampler(model.sampling, sorted(model.eos), keys, prompts, device, model.untempered)
    # By row: a row keeps its number in any slot.
    ids = torch.zeros((count, steps), dtype=torch.long, device=device)
    logprobs = torch.zeros((count, steps, 1 + model.untempered), device=device)
    position = past.mask.sum(-1)[torch.tensor(slots, device=device)]
    lengths, fed = [steps] * count, [0] * count
    start, active = past.length, count
    rows = torch.tensor(row_of, device=device)
    is_open = [True] * count  # by slot
    for step in range(steps):
        ids[rows, step], logprobs[rows, step] = sampler(logits, rows, step)
        for slot, end in enumerate(model.ends(ids[rows, : step + 1]).tolist()):
            if end and is_open[slot]:
                is_open[slot] = False
                lengths[row_of[slot]] = step + 1
        remaining = sum(is_open[:active])
        if step + 1 == steps or not remaining:
            break
        if active - remaining >= MIN_DROP_SHARE * active:
            ended_slots = [slot for slot in range(remaining) if not is_open[slot]]
            open_slots = [slot for slot in range(remaining, active) if is_open[slot]]
            past.exchange(ended_slots, open_slots)
            for one, other in zip(ended_slots, open_slots, strict=True):
                row_of[one], row_of[other] = row_of[other], row_of[one]
                is_open[one], is_open[other] = True, False
            for slot in range(remaining, active):
                fed[row_of[slot]] = step
            active = remaining
            rows = torch.tensor(row_of[:active], device=device)
        column = start + step
        past.mask[:active, column] = 1
        output = model.forward(
            input_ids=ids[rows, step, None],
            attention_mask=model.attention_mask(past.mask[:active, : column + 1], 1),
            position_ids=position[rows, None] + step,
            past_key_values=past.at(slice(0, active), column),
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        past.length = column + 1
    for slot in range(active):
        fed[row_of[slot]] = past.length - start
    utterances = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    # The ids of each utterance that stay in the cache.
    cached = [min(len(row) - (row[-1] in model.eos), n) for row, n in zip(utterances, fed, strict=True)]
    counts = torch.tensor([cached[row] for row in row_of], device=device)
    columns = torch.arange(past.length - start, device=device)
    past.mask[:, start : past.length] = columns < counts[:, None]
    past.ids = [prompts[row] + utterances[row][: cached[row]] for row in row_of]
    values = [row[:length] for row, length in zip(logprobs.tolist(), lengths, strict=True)]
    return utterances, values, inverse(row_of)


def inverse(order: list[int]) -> list[int]:
    """Return the place of each number in the order."""
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return places
