"""Sampling and scoring without a branched cache: every row is fed again as a whole, through transformers' `generate`.

For models whose cache cannot be branched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from astra_trl.backends.base import Logprobs
from astra_trl.backends.hf.model import HFModel
from astra_trl.backends.hf.sampling import TokenSampler


@dataclass(frozen=True)
class Feed:
    """Ids of a row that a model must have seen, and the range `ids[scored_from:scored_to]` to score."""

    ids: list[int]
    scored_from: int = 0
    scored_to: int = 0

    @property
    def logits(self) -> int:
        """Number of last positions whose logits are needed; each predicts the token after it."""
        return len(self.ids) - self.first_logit

    @property
    def first_logit(self) -> int:
        """First position whose logits are needed."""
        return self.scored_from - 1 if self.scored_to > self.scored_from else len(self.ids) - 1

    def select(self, logprobs: list[float]) -> list[float]:
        """Select those of the range from the log-probabilities of the row's last ids."""
        end = len(logprobs)
        return logprobs[end - len(self.ids) + self.scored_from : end - len(self.ids) + self.scored_to]


def similar_width(width: int) -> int:
    """Return the largest width to which rows of this width are padded."""
    return max(2 * width, width + 32)


def following_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return natural log-probabilities (rows, positions - 1) of the last ids, each under the logits before it."""
    rows, positions, vocabulary = logits.shape
    # The last position predicts an unknown token: including it saves a copy of all other positions.
    followers = ids[:, -positions:].roll(-1, dims=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, vocabulary), followers.reshape(-1), reduction="none"
    )
    return -losses.view(rows, positions)[:, :-1]


def generate(
    model: HFModel, prompts: list[list[int]], keys: list[int]
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Sample an utterance per row: its ids, up to an end of sequence, and log-probabilities as in `TokenSampler`."""
    utterances: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[list[float]]] = [[] for _ in prompts]
    for rows in _batches(model, prompts):
        batch = [prompts[row] for row in rows]
        ids, mask = model.left_padded(batch)
        sampler = _SampleInGenerate(model, [keys[row] for row in rows], batch, ids.device)
        model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=model.greedy_config(),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([sampler.has_ended]),
        )
        for row, tokens, values, length in zip(
            rows, sampler.ids.tolist(), sampler.logprobs.tolist(), sampler.lengths.tolist(), strict=True
        ):
            utterances[row], logprobs[row] = tokens[:length], values[:length]
    return utterances, logprobs


def score(model: HFModel, feeds: list[Feed], temperature: float = 1.0) -> list[Logprobs]:
    """Return the log-probabilities of each feed's range, at a temperature that divides the logits."""
    logprobs: list[Logprobs] = [[] for _ in feeds]
    for rows in _batches(model, [feed.ids for feed in feeds]):
        keep = max(feeds[row].logits for row in rows)
        if keep == 1:
            continue
        ids, mask = model.left_padded([feeds[row].ids for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        output = model.forward(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
        )
        logits = output.logits[:, -keep:]
        logits = logits if temperature == 1 else logits / temperature
        for row, values in zip(rows, following_logprobs(logits, ids).tolist(), strict=True):
            logprobs[row] = feeds[row].select(values)
    return logprobs


def _batches(model: HFModel, rows: list[list[int]]) -> Iterator[list[int]]:
    """Yield row numbers that can be fed together: rows of similar length, or of one if padding has an effect."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    while order:
        shortest = len(rows[order[0]])
        longest = similar_width(shortest) if model.pads else shortest
        count = sum(len(rows[row]) <= longest for row in order)
        yield order[:count]
        order = order[count:]


class _SampleInGenerate(LogitsProcessor):
    """Samples a token per row, and leaves `generate` no choice but that token."""

    def __init__(self, model: HFModel, keys: list[int], prompts: list[list[int]], device: torch.device) -> None:
        self.model = model
        self.sampler = TokenSampler(model.sampling, sorted(model.eos), keys, prompts, device, model.untempered)
        self.rows = torch.arange(len(prompts), device=device)
        self.ids = torch.zeros((len(prompts), model.sampling.max_new_tokens), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((*self.ids.shape, 1 + model.untempered), device=device)
        self.lengths = torch.full_like(self.rows, model.sampling.max_new_tokens)
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = self.sampler(scores, self.rows, self.step)
        self.ids[:, self.step], self.logprobs[:, self.step] = tokens, logprobs
        self.step += 1
        ends = self.model.ends(self.ids[:, : self.step])
        self.lengths = torch.where(ends & (self.lengths > self.step), self.step, self.lengths)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def has_ended(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.lengths <= self.step
