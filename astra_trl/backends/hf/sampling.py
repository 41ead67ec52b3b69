"""Logits to tokens: the distribution of transformers' own processors, with random numbers that belong to a row."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from astra_trl.backends.base import SamplingParams


class TokenSampler:
    """Draws the next token of every row, step by step.

    A row's random numbers come from its key alone, so its tokens do not depend on the rows beside it.

    Args:
        params (`SamplingParams`):
            How tokens are drawn.
        eos (`Sequence[int]`):
            End-of-sequence ids, which `min_new_tokens` holds back.
        keys (`Sequence[int]`):
            One random key a row.
        contexts (`Sequence[list[int]]`):
            Token ids each row starts from, none empty; the repetition penalty is about these and the drawn ones.
        device (`torch.device`):
            Where the logits will be.
    """

    def __init__(
        self,
        params: SamplingParams,
        eos: Sequence[int],
        keys: Sequence[int],
        contexts: Sequence[list[int]],
        device: torch.device,
    ) -> None:
        self.params = params
        self.eos = torch.tensor(eos, dtype=torch.long, device=device)
        if params.temperature > 0:
            # A draw outside the nucleus is drawn again, and about half of what is outside goes each time.
            draws = 1 if params.top_p == 1 else 8 + math.ceil(math.log2(1 / params.top_p))
            shape = (params.max_new_tokens, draws)
            uniforms = np.stack([np.random.Generator(np.random.Philox(key)).random(shape, np.float32) for key in keys])
            # Times the sum of the weights, a larger one could round up to that sum, which lies behind the last token.
            self.uniforms = torch.from_numpy(uniforms).clamp_(max=1 - 2**-23).to(device)
        self.seen: torch.Tensor | None = None
        if params.repetition_penalty != 1:
            self.start = max(len(context) for context in contexts)
            space = [0] * params.max_new_tokens
            # Each row is padded with a token of its own, so that padding penalises nothing more.
            padded = [context + context[:1] * (self.start - len(context)) + space for context in contexts]
            self.seen = torch.tensor(padded, device=device)

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (rows,), and their log-probabilities (rows, 2) before the distribution was cut: at the sampling
        temperature, and at temperature 1.

        `logits` (rows, vocabulary) follow `step` earlier tokens of the rows whose numbers are in `rows`. Changes
        `logits`.
        """
        logits = logits.float()
        untempered = logits.log_softmax(-1)
        tempered = self._tempered(untempered)
        if tempered is not untempered:
            tempered = tempered.log_softmax(-1)
        penalised = self._penalise(logits, rows, step)
        if self.params.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            weights = self._weights(logits) if penalised or self.params.top_k else tempered.exp()
            tokens = self._draw(weights, self.uniforms[rows, step])
        if self.seen is not None:
            self.seen[rows, self.start + step] = tokens
        return tokens, torch.cat([logprobs.gather(-1, tokens[:, None]) for logprobs in (tempered, untempered)], dim=-1)

    def _tempered(self, logits: torch.Tensor) -> torch.Tensor:
        # Greedy tokens are told at temperature 1.
        return logits if self.params.temperature in (0, 1) else logits / self.params.temperature

    def _penalise(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> bool:
        """Changes logits as transformers' logits processors do; whether any may have changed."""
        if self.seen is not None:
            seen = self.seen[rows, : self.start + step]
            values, penalty = logits.gather(-1, seen), self.params.repetition_penalty
            logits.scatter_(-1, seen, torch.where(values < 0, values * penalty, values / penalty))
        held_back = step < self.params.min_new_tokens and len(self.eos) > 0
        if held_back:
            logits.index_fill_(-1, self.eos, -torch.inf)
        return self.seen is not None or held_back

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        # The logits are divided before the softmax: in the other order, low temperatures leave nothing but zeros.
        logits = self._tempered(logits)
        if 0 < self.params.top_k < logits.shape[-1]:
            # All that are as likely as the last of the k, as in transformers.
            logits = logits.masked_fill(logits < logits.topk(self.params.top_k, dim=-1).values[:, -1:], -torch.inf)
        return logits.log_softmax(-1).exp_()

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        if self.params.top_p == 1:
            return _inverse_cdf(weights, uniforms[:, 0])
        return _draw_from_nucleus(weights, uniforms, self.params.top_p)


def _inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    running = weights.cumsum(-1)
    # The first running sum above the number: never that of a token without weight.
    tokens = torch.searchsorted(running, (uniforms * running[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1)  # of a row that has been drawn and has no weight left


def _draw_from_nucleus(weights: torch.Tensor, uniforms: torch.Tensor, top_p: float) -> torch.Tensor:
    """Tokens (rows,) from the smallest set of likeliest tokens that holds `top_p` of the weight.

    A token belongs to it if those likelier than it hold less than `top_p`: one sum, where finding the set would sort
    the vocabulary. Of equally likely tokens, some of which may be outside, the one of the higher id counts as
    likelier. So a token is drawn and tested; if it is outside, so is all that is not likelier, and the next is drawn
    from the rest. `uniforms` (rows, draws) bounds the draws; that they do not suffice has a probability of less than
    1e-9, and the likeliest token is taken then.
    """
    limit = top_p * weights.sum(-1)
    rows, ids = (torch.arange(size, device=weights.device) for size in weights.shape)
    tokens = torch.zeros_like(rows)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    for draw in range(uniforms.shape[1]):
        drawn = _inverse_cdf(weights, uniforms[rows, draw])
        own = weights.gather(-1, drawn[:, None])
        first = (weights > own) | ((weights == own) & (ids > drawn[:, None]))
        likelier = torch.where(first, weights, 0)
        inside = likelier.sum(-1) < limit[rows]
        tokens[rows] = torch.where(inside & ~settled, drawn, tokens[rows])
        settled = settled | inside
        weights = likelier
        # How many rows are left must be known on the host: on a GPU every draw is made for all, which costs less.
        if weights.device.type == "cpu":
            rest = (~settled).nonzero()[:, 0]
            if not len(rest):
                return tokens
            rows, weights, settled = rows[rest], weights[rest], settled[rest]
    tokens[rows] = torch.where(settled, tokens[rows], weights.argmax(-1))
    return tokens
