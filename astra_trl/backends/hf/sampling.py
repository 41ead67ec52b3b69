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
        """Tokens, and their log-probabilities before the distribution was cut, both of shape (rows,).

        `logits` (rows, vocabulary) follow `step` earlier tokens of the rows whose numbers are in `rows`. Changes
        `logits`.
        """
        params = self.params
        logits = logits.float()
        if params.temperature not in (0, 1):
            logits /= params.temperature
        probabilities = logits.softmax(-1)
        # Cutting and penalties change a few weights, which need not add up to 1: the others stay as they are.
        weights = probabilities
        if self.seen is not None:
            seen = self.seen[rows, : self.start + step]
            values = logits.gather(-1, seen)
            penalised = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
            changed = weights.gather(-1, seen) * (penalised - values).exp()
            weights = weights.scatter(-1, seen, changed)
        if step < params.min_new_tokens:
            weights = weights.index_fill(-1, self.eos, 0)
        tokens = weights.argmax(-1) if params.temperature == 0 else self._draw(weights, self.uniforms[rows, step])
        if self.seen is not None:
            self.seen[rows, self.start + step] = tokens
        return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        top_p, top_k = self.params.top_p, self.params.top_k
        if 0 < top_k < weights.shape[-1]:
            weights, tokens = weights.topk(top_k, dim=-1)
            likelier = weights.cumsum(-1) - weights
            weights = weights.masked_fill(likelier >= top_p * weights.sum(-1, keepdim=True), 0)
            return tokens.gather(-1, _inverse_cdf(weights, uniforms[:, 0])[:, None])[:, 0]
        if top_p == 1:
            return _inverse_cdf(weights, uniforms[:, 0])
        return _draw_from_nucleus(weights, uniforms, top_p)


def _inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    running = weights.cumsum(-1)
    # The first running sum above the number: never that of a token without weight.
    tokens = torch.searchsorted(running, (uniforms * running[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1)  # where all weights are 0


def _draw_from_nucleus(weights: torch.Tensor, uniforms: torch.Tensor, top_p: float) -> torch.Tensor:
    """Tokens (rows,) from the smallest set of likeliest tokens that holds `top_p` of the weight.

    A token belongs to it if those likelier than it hold less than `top_p`: one sum, where finding the set would sort
    the vocabulary. So a token is drawn and tested; if it is outside, so is all that is not likelier, and the next is
    drawn from the rest. `uniforms` (rows, draws) bounds the draws; that they do not suffice has a probability of less
    than 1e-9, and the likeliest token is taken then.
    """
    limit = top_p * weights.sum(-1)
    rows = torch.arange(len(weights), device=weights.device)
    tokens = torch.zeros_like(rows)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    for draw in range(uniforms.shape[1]):
        drawn = _inverse_cdf(weights, uniforms[rows, draw])
        likelier = torch.where(weights > weights.gather(-1, drawn[:, None]), weights, 0)
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
