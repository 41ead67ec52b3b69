"""Sampling from logits: the distribution of transformers' own processors, with random numbers of each row."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from astra_trl.backends.base import SamplingParams


class TokenSampler:
    """Draws the next token of every row, step by step.

    A row's random numbers come from its key alone, so its tokens do not depend on the other rows of the batch. The
    repetition penalty counts the tokens of its context, which is not empty, and the drawn ones.
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
            # A token outside the nucleus is drawn again, each time from about half of the rest outside.
            draws = 1 if params.top_p == 1 else 8 + math.ceil(math.log2(1 / params.top_p))
            shape = (params.max_new_tokens, draws)
            uniforms = np.stack([np.random.Generator(np.random.Philox(key)).random(shape, np.float32) for key in keys])
            # Times the sum of the weights, a larger number could round up to that sum, beyond the last token.
            self.uniforms = torch.from_numpy(uniforms).clamp_(max=1 - 2**-23).to(device)
        self.history: torch.Tensor | None = None
        if params.repetition_penalty != 1:
            self.start = max(len(context) for context in contexts)
            space = [0] * params.max_new_tokens
            # Each row is padded with its own first token, so that padding penalises no other token.
            padded = [context + context[:1] * (self.start - len(context)) + space for context in contexts]
            self.history = torch.tensor(padded, device=device)

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (rows,) and their log-probabilities (rows, 1), before penalties, top-k and top-p.

        With `untempered`, log-probabilities are (rows, 2): at the sampling temperature and at temperature 1. `logits`
        (rows, vocabulary) follow `step` earlier tokens of the rows whose numbers are in `rows`; they are overwritten.
        """
        # Tokens are often equally likely in half precision, and too rarely in float32 to check for it.
        self.ties = logits.dtype != torch.float32
        logits = logits.float()
        temperature = self.params.temperature or 1.0  # log-probabilities of greedy tokens are at temperature 1
        scores = self._penalise(logits, rows, step)
        same = scores is logits
        tables = [logits.clone() if temperature != 1 else logits] if self.untempered else []
        # The logits are divided before the softmax: in the other order, low temperatures leave only zeros.
        tables.insert(0, logits.div_(temperature) if temperature != 1 else logits)
        scores = tables[0] if same else scores.div_(temperature)
        weights = tables[0].softmax(-1)
        totals = [_log_total(tables[0], weights), *(_log_total(plain, plain.softmax(-1)) for plain in tables[1:])]
        if self.params.temperature == 0:
            tokens = scores.argmax(-1)
        elif 0 < self.params.top_k < logits.shape[-1]:
            tokens = self._draw_from_top_k(scores, self.uniforms[rows, step])
        else:
            tokens = self._draw(weights if same else scores.softmax(-1), self.uniforms[rows, step])
        if self.history is not None:
            self.history[rows, self.start + step] = tokens
        own = tokens[:, None]
        return tokens, torch.cat([x.gather(-1, own) - total for x, total in zip(tables, totals, strict=True)], dim=-1)

    def _penalise(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Return the logits as transformers' logits processors change them: a copy, or themselves if unchanged."""
        suppress_eos = step < self.params.min_new_tokens and len(self.eos) > 0
        if self.history is None and not suppress_eos:
            return logits
        scores = logits.clone()
        if self.history is not None:
            history = self.history[rows, : self.start + step]
            values, penalty = logits.gather(-1, history), self.params.repetition_penalty
            scores.scatter_(-1, history, torch.where(values < 0, values * penalty, values / penalty))
        return scores.index_fill_(-1, self.eos, -torch.inf) if suppress_eos else scores

    def _draw_from_top_k(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        top_k = self.params.top_k
        values, tokens = logits.topk(top_k + 1, dim=-1)
        if (values[:, top_k] == values[:, top_k - 1]).any():
            # All tokens as likely as the last of the k stay, as in transformers.
            rest = logits < values[:, top_k - 1, None]
            return self._draw(logits.masked_fill(rest, -torch.inf).softmax(-1), uniforms)
        return tokens.gather(-1, self._draw(values[:, :top_k].softmax(-1), uniforms)[:, None])[:, 0]

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        if self.params.top_p == 1:
            return _inverse_cdf(weights, uniforms[:, 0])
        return _draw_from_nucleus(weights, uniforms, self.params.top_p, self.ties)


def _log_total(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Return the log-sum-exp of the logits (rows, 1) by the likeliest token: less work than to sum again."""
    return logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()


def _inverse_cdf(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    running = weights.cumsum(-1)
    # The first running sum above the number: never that of a token without weight.
    tokens = torch.searchsorted(running, (uniforms * running[:, -1])[:, None], right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1)  # a row that has its token can have no weight left


def _draw_from_nucleus(weights: torch.Tensor, uniforms: torch.Tensor, top_p: float, ties: bool) -> torch.Tensor:
    """Draw tokens (rows,) from the smallest set of likeliest tokens that holds `top_p` of the weight.

    A token belongs to the set if the tokens likelier than it hold less than `top_p`: one sum instead of a sort of the
    vocabulary. With `ties`, the higher id of equally likely tokens counts as likelier, because only some of them may
    belong to the set. So a token is drawn and tested. If it is outside, so are all tokens that are not likelier, and
    the next one is drawn from the rest. `uniforms` (rows, draws) limits the draws; with a probability below 1e-9 they
    do not suffice, and the likeliest token is taken.
    """
    limit = top_p * weights.sum(-1)
    rows, ids = (torch.arange(size, device=weights.device) for size in weights.shape)
    tokens = torch.zeros_like(rows)
    is_settled = torch.zeros_like(rows, dtype=torch.bool)
    for draw in range(uniforms.shape[1]):
        candidates = _inverse_cdf(weights, uniforms[rows, draw])
        own = weights.gather(-1, candidates[:, None])
        likelier = torch.where(weights > own, weights, 0)
        if ties:
            likelier = torch.where((weights == own) & (ids > candidates[:, None]), weights, likelier)
        inside = likelier.sum(-1) < limit[rows]
        tokens[rows] = torch.where(inside & ~is_settled, candidates, tokens[rows])
        is_settled = is_settled | inside
        weights = likelier
        # To drop rows, the host must know them: on a GPU it costs less to make every draw for all rows.
        if weights.device.type == "cpu":
            rest = (~is_settled).nonzero()[:, 0]
            if not len(rest):
                return tokens
            rows, weights, is_settled = rows[rest], weights[rest], is_settled[rest]
    tokens[rows] = torch.where(is_settled, tokens[rows], weights.argmax(-1))
    return tokens
