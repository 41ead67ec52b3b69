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
        untempered (`bool`, *optional*, defaults to `False`):
            Whether log-probabilities at temperature 1 are returned too.
    """

    def __init__(
        self,
        params: SamplingParams,
        eos: Sequence[int],
        keys: Sequence[int],
        contexts: Sequence[list[int]],
        device: torch.device,
        untempered: bool = False,
    ) -> None:
        self.params, self.untempered = params, untempered
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
        """Tokens (rows,), and their log-probabilities (rows, 1) before the distribution was cut; with `untempered`, at
        the sampling temperature and at temperature 1 (rows, 2).

        `logits` (rows, vocabulary) follow `step` earlier tokens of the rows whose numbers are in `rows`. Changes
        `logits`.
        """
        # In half precision tokens are often equally likely; that they are in float32 is too rare to be looked for.
        self.ties = logits.dtype != torch.float32
        logits = logits.float()
        temperature = self.params.temperature or 1.0  # of greedy tokens, those at temperature 1 are returned
        changed = self._penalised(logits, rows, step)
        same = changed is logits
        told = [logits.clone() if temperature != 1 else logits] if self.untempered else []
        # The logits are divided before the softmax: in the other order, low temperatures leave nothing but zeros.
        told.insert(0, logits.div_(temperature) if temperature != 1 else logits)
        changed = told[0] if same else changed.div_(temperature)
        weights = told[0].softmax(-1)
        totals = [_log_total(told[0], weights), *(_log_total(plain, plain.softmax(-1)) for plain in told[1:])]
        if self.params.temperature == 0:
            tokens = changed.argmax(-1)
        elif 0 < self.params.top_k < logits.shape[-1]:
            tokens = self._draw_from_top_k(changed, self.uniforms[rows, step])
        else:
            tokens = self._draw(weights if same else changed.softmax(-1), self.uniforms[rows, step])
        if self.seen is not None:
            self.seen[rows, self.start + step] = tokens
        own = tokens[:, None]
        return tokens, torch.cat([x.gather(-1, own) - total for x, total in zip(told, totals, strict=True)], dim=-1)

    def _penalised(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """The logits as transformers' logits processors change them: a copy, or themselves if nothing changes."""
        held_back = step < self.params.min_new_tokens and len(self.eos) > 0
        if self.seen is None and not held_back:
            return logits
        changed = logits.clone()
        if self.seen is not None:
            seen = self.seen[rows, : self.start + step]
            values, penalty = logits.gather(-1, seen), self.params.repetition_penalty
            changed.scatter_(-1, seen, torch.where(values < 0, values * penalty, values / penalty))
        return changed.index_fill_(-1, self.eos, -torch.inf) if held_back else changed

    def _draw_from_top_k(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        top_k = self.params.top_k
        values, tokens = logits.topk(top_k + 1, dim=-1)
        if (values[:, top_k] == values[:, top_k - 1]).any():
            # All that are as likely as the last of the k, as in transformers.
            rest = logits < values[:, top_k - 1, None]
            return self._draw(logits.masked_fill(rest, -torch.inf).softmax(-1), uniforms)
        return tokens.gather(-1, self._draw(values[:, :top_k].softmax(-1), uniforms)[:, None])[:, 0]

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        if self.params.top_p == 1:
            return _inverse_cdf(weights, uniforms[:, 0])
        return _draw_from_nucleus(weights, uniforms, self.params.top_p, self.ties)


def _log_total(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The logarithm (rows, 1) of the sum of exponentiated logits, by the likeliest token: less work than anew."""
    return logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()


def _inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    running = weights.cumsum(-1)
    # The first running sum above the number: never that of a token without weight.
    tokens = torch.searchsorted(running, (uniforms * running[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1)  # of a row that has been drawn and has no weight left


def _draw_from_nucleus(weights: torch.Tensor, uniforms: torch.Tensor, top_p: float, ties: bool) -> torch.Tensor:
    """Tokens (rows,) from the smallest set of likeliest tokens that holds `top_p` of the weight.

    A token belongs to it if those likelier than it hold less than `top_p`: one sum, where finding the set would sort
    the vocabulary. Of equally likely tokens, some of which may be outside, the one of the higher id counts as likelier
    if there are `ties`. So a token is drawn and tested; if it is outside, so is all that is not likelier, and the next
    is drawn from the rest. `uniforms` (rows, draws) bounds the draws; that they do not suffice has a probability of
    less than 1e-9, and the likeliest token is taken then.
    """
    limit = top_p * weights.sum(-1)
    rows, ids = (torch.arange(size, device=weights.device) for size in weights.shape)
    tokens = torch.zeros_like(rows)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    for draw in range(uniforms.shape[1]):
        drawn = _inverse_cdf(weights, uniforms[rows, draw])
        own = weights.gather(-1, drawn[:, None])
        likelier = torch.where(weights > own, weights, 0)
        if ties:
            likelier = torch.where((weights == own) & (ids > drawn[:, None]), weights, likelier)
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
