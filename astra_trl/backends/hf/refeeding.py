"""For models whose cache cannot be branched: transformers' own `generate` feeds every row again, whole."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from astra_trl.backends.base import Logprobs
from astra_trl.backends.hf.sampling import TokenSampler
from astra_trl.backends.hf.scoring import Wanted, following_logprobs

if TYPE_CHECKING:
    from astra_trl.backends.hf.backend import HFBackend


def generate(
    backend: "HFBackend", prompts: list[list[int]], keys: list[int]
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Sampled ids and their log-probabilities (see `TokenSampler`), a row each, up to and including the first end of
    sequence."""
    sampled: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[list[float]]] = [[] for _ in prompts]
    for rows in backend.batches(prompts):
        batch = [prompts[row] for row in rows]
        ids, mask = backend.left_padded(batch)
        draw = _DrawInGenerate(backend, [keys[row] for row in rows], batch, ids.device)
        backend.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=backend.greedy_config(),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([draw.ended]),
        )
        for row, tokens, values, length in zip(
            rows, draw.ids.tolist(), draw.logprobs.tolist(), draw.lengths.tolist(), strict=True
        ):
            sampled[row], logprobs[row] = tokens[:length], values[:length]
    return sampled, logprobs


def score(backend: "HFBackend", wanted: list[Wanted], temperature: float = 1.0) -> list[Logprobs]:
    """The log-probabilities asked for of every row, at a temperature that logits are divided by."""
    logprobs: list[Logprobs] = [[] for _ in wanted]
    for rows in backend.batches([w.ids for w in wanted]):
        keep = max(len(wanted[row].ids) - wanted[row].first_logit for row in rows)
        if keep == 1:
            continue
        ids, mask = backend.left_padded([wanted[row].ids for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        output = backend.forward(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
        )
        logits = output.logits[:, -keep:]
        logits = logits if temperature == 1 else logits / temperature
        for row, values in zip(rows, following_logprobs(logits, ids).tolist(), strict=True):
            logprobs[row] = wanted[row].scored(values)
    return logprobs


class _DrawInGenerate(LogitsProcessor):
    # Leaves `generate` no choice but the token that was drawn for each row.
    def __init__(self, backend: "HFBackend", keys: list[int], prompts: list[list[int]], device: torch.device) -> None:
        self.backend = backend
        self.sampler = TokenSampler(backend.sampling, sorted(backend.eos), keys, prompts, device, backend.untempered)
        self.rows = torch.arange(len(prompts), device=device)
        self.ids = torch.zeros((len(prompts), backend.sampling.max_new_tokens), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((*self.ids.shape, 1 + backend.untempered), device=device)
        self.lengths = torch.full_like(self.rows, backend.sampling.max_new_tokens)
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = self.sampler(scores, self.rows, self.step)
        self.ids[:, self.step], self.logprobs[:, self.step] = tokens, logprobs
        self.step += 1
        ended = self.backend.ends(self.ids[:, : self.step])
        self.lengths = torch.where(ended & (self.lengths > self.step), self.step, self.lengths)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def ended(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.lengths <= self.step
