"""The rollout engine: many conversations grow together, and each token passes through the model once.

A session compares token ids to find what of a row it has computed before; it never assumes. What is new is fed in
blocks padded on the left, so that a row's columns have holes: positions come from the running sum of its mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from astra_trl.backends.base import Logprobs, OutOfMemory, Sample, derive_seed
from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.dialogue import Row
from astra_trl.backends.hf.sampling import TokenSampler

if TYPE_CHECKING:
    from astra_trl.backends.hf.backend import HFBackend

LOGITS_BYTES = 2**28  # of one forward pass that scores
SHARED_FROM = 8  # tokens: feeding fewer to each child costs less than a forward pass over their parents
DROP_SHARE = 0.25  # of rows that have ended, from which on a step goes on without them


@dataclass
class _Wanted:
    # What the cache must hold of a row, and from which token on log-probabilities are asked for.
    ids: list[int]
    scored_from: int
    scored_to: int

    @property
    def first_logit(self) -> int:
        """The position whose logits are needed first: those that tell the token after it."""
        return self.scored_from - 1 if self.scored_to > self.scored_from else len(self.ids) - 1

    def scored(self, logprobs: list[float]) -> list[float]:
        """Those asked for, of the log-probabilities of the last ids."""
        end = len(logprobs)
        return logprobs[end - len(self.ids) + self.scored_from : end - len(self.ids) + self.scored_to]


class HFSession:
    """The rows of an `HFBackend`."""

    def __init__(
        self,
        backend: "HFBackend",
        rows: list[Row],
        keys: list[int],
        with_logprobs: bool,
        source: "tuple[HFSession, list[int]] | None" = None,
    ) -> None:
        self.backend = backend
        self.rows = rows
        self.keys = keys
        self.with_logprobs = with_logprobs
        self.branches: bool = source[0].branches if source is not None else backend.branches
        self.utterances = 0
        self.source = source  # the session whose rows these go on from, until the first token is needed
        self.past: KeyValues | None = None
        self.slots: list[int] = []  # of each row in the past
        self.logits: torch.Tensor | None = None  # (slots, vocabulary), of the token after the past

    @property
    def max_rows(self) -> int | None:
        backend = self.backend
        if backend.budget.limit is None or not self.branches:
            return backend.max_rows
        # Half of what is left, so that the branches of a branch find room too.
        columns = max(len(row.ids) for row in self.rows) + 3 * backend.sampling.max_new_tokens
        if backend.window is not None:
            columns = min(columns, backend.window + backend.sampling.max_new_tokens)
        free = (backend.budget.limit - backend.budget.held) // 2
        return max(1, min(backend.max_rows, free // (columns * backend.cache_spec.bytes_per_token)))

    def branch(self, children: Sequence[tuple[int, int]]) -> "HFSession":
        return HFSession(
            self.backend,
            [self.rows[row] for row, _ in children],
            [derive_seed(self.keys[row], sibling) for row, sibling in children],
            self.with_logprobs,
            (self, [row for row, _ in children]),
        )

    def sample(self) -> list[Sample]:
        backend = self.backend
        prompts = [backend.fit(row.ids) for row in self.rows]
        keys = [derive_seed(key, self.utterances) for key in self.keys]
        with self._running():
            if self.branches:
                if self.source is not None:
                    self.source[0]._feed_before_branch(all_of_it=True)
                self._feed([_Wanted(ids, len(ids), len(ids)) for ids in prompts])
                sampled, logprobs = self._decode(prompts, keys)
            else:
                sampled, logprobs = self._generate(prompts, keys)
        self.utterances += 1
        said = [ids[:-1] if ids and ids[-1] in backend.eos else ids for ids in sampled]
        texts = backend.tokenizer.batch_decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.rows = [
            backend.dialogue.said(row, ids, text) for row, ids, text in zip(self.rows, said, texts, strict=True)
        ]
        return [Sample(*sample) for sample in zip(texts, prompts, sampled, logprobs, strict=True)]

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        backend = self.backend
        heard = list(backend.dialogue.heard(self.rows, texts))
        logprobs: list[Logprobs] | None = None
        if self.with_logprobs:
            wanted = []
            for row, start, stop in heard:
                ids = backend.fit(row.ids)
                cut = len(row.ids) - len(ids)
                # The first token of all follows nothing; BOS is there to be followed.
                first = max(1, len(backend.dialogue.head))
                wanted.append(_Wanted(ids, max(start - cut, first), max(stop - cut, first)))
            with self._running():
                if self.branches:
                    if self.source is not None:
                        self.source[0]._feed_before_branch(all_of_it=False)
                    logprobs = self._feed(wanted)
                else:
                    logprobs = self._score(wanted)
        self.rows = [row for row, _, _ in heard]
        return logprobs

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with self.backend.inference():
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from None
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
            raise OutOfMemory(str(error)) from None

    # -- feeding

    def _feed_before_branch(self, all_of_it: bool) -> None:
        """Feeds what every child would have to feed: all of it where they sample next, else all but the last token,
        whose logits belong to what each child appends."""
        prompts = [self.backend.fit(row.ids) for row in self.rows]
        if not all_of_it:
            known = [len(self.past.ids[slot]) for slot in self.slots] if self.past is not None else [0] * len(prompts)
            if self.source is not None or self.past is None:
                known = [0] * len(prompts)
            if max(len(ids) - count for ids, count in zip(prompts, known, strict=True)) <= SHARED_FROM:
                return
            prompts = [ids[:-1] if len(ids) > 1 else ids for ids in prompts]
        if self.source is not None:
            self.source[0]._feed_before_branch(all_of_it)
        self._feed([_Wanted(ids, len(ids), len(ids)) for ids in prompts], room=0)

    def _feed(self, wanted: list[_Wanted], room: int | None = None) -> list[Logprobs]:
        """Makes the cache hold what is wanted, with room for an utterance; returns the log-probabilities asked for."""
        backend = self.backend
        room = backend.sampling.max_new_tokens if room is None else room
        past, slots, logits = self.past, self.slots, self.logits
        if self.source is not None:
            parent, parent_rows = self.source
            past, logits = parent.past, parent.logits
            slots = [parent.slots[row] for row in parent_rows] if past is not None else []
        kept = [0] * len(wanted)
        if past is not None:
            kept = [_common_prefix(past.ids[slot], w.ids) for slot, w in zip(slots, wanted, strict=True)]
            if logits is not None and all(k == len(w.ids) for k, w in zip(kept, wanted, strict=True)):
                if past is not self.past or past.window.columns < past.length + room:
                    self._hold(past.select(slots, kept, past.length + room), list(range(len(wanted))))
                    self.logits = logits[torch.tensor(slots, device=logits.device)]
                return [[] for _ in wanted]
            kept = [min(k, w.first_logit) for k, w in zip(kept, wanted, strict=True)]
            # A row that was cut on the left, or rewritten, shares next to nothing with its past: it is fed anew.
            kept = [
                k if 2 * k >= min(len(past.ids[slot]), len(w.ids)) else 0
                for k, slot, w in zip(kept, slots, wanted, strict=True)
            ]
        fresh = [k == 0 for k in kept]
        widths = [len(w.ids) - k for k, w in zip(kept, wanted, strict=True)]
        order = sorted(range(len(wanted)), key=lambda row: (fresh[row], widths[row]))
        length = past.length if past is not None else 0
        # A row that is fed anew may lie over its own old columns.
        end = max(width if new else length + width for new, width in zip(fresh, widths, strict=True))
        if past is not None and not all(fresh):
            held = past.select([slots[row] for row in order], [kept[row] for row in order], end + room)
        else:
            held = KeyValues(backend.cache_spec, len(wanted), end + room)
        logprobs: list[Logprobs] = [[] for _ in wanted]
        last = []
        for start, stop in self._slices([(fresh[row], widths[row], wanted[row]) for row in order]):
            rows = order[start:stop]
            keep = max(len(wanted[row].ids) - wanted[row].first_logit for row in rows)
            blocks = [wanted[row].ids[kept[row] :] for row in rows]
            ids, output = self._forward(held, slice(start, stop), end, blocks, keep)
            last.append(output[:, -1].clone() if keep > 1 else output[:, -1])
            if keep > 1:
                for row, values in zip(rows, _logprobs(output, ids).tolist(), strict=True):
                    logprobs[row] = wanted[row].scored(values)
            del output
        held.length = end
        held.ids = [wanted[row].ids for row in order]
        self._hold(held, [slot for _, slot in sorted(zip(order, range(len(order)), strict=True))])
        self.logits = torch.cat(last)
        return logprobs

    def _hold(self, past: KeyValues, slots: list[int]) -> None:
        self.past, self.slots, self.source = past, slots, None

    def _slices(self, rows: list[tuple[bool, int, _Wanted]]) -> Iterator[tuple[int, int]]:
        """Runs of rows for one forward pass each: of like width, and with logits that fit in memory."""
        start, keep = 0, 1
        for stop, (fresh, width, wanted) in enumerate(rows):
            first_fresh, first_width, _ = rows[start]
            keep = max(keep, len(wanted.ids) - wanted.first_logit)
            size = 4 * (stop + 1 - start) * keep * self.backend.vocabulary
            alike = fresh == first_fresh and width <= max(2 * first_width, first_width + 32)
            if stop > start and not (alike and (keep == 1 or size <= LOGITS_BYTES)):
                yield start, stop
                start, keep = stop, len(wanted.ids) - wanted.first_logit
        yield start, len(rows)

    def _forward(
        self, held: KeyValues, rows: slice, end: int, blocks: list[list[int]], keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (rows, widest block) and logits (rows, `keep`, vocabulary) of blocks that end at column `end`."""
        width = max(len(block) for block in blocks)
        padded = [block[:1] * (width - len(block)) + block for block in blocks]
        ids = torch.tensor(padded, device=held.mask.device)
        lengths = torch.tensor([len(block) for block in blocks], device=ids.device)
        held.mask[rows, end - width : end] = torch.arange(width, device=ids.device) >= width - lengths[:, None]
        mask = held.mask[rows, :end]
        positions = (mask.cumsum(-1)[:, -width:] - 1).clamp_(min=0)
        output = self.backend.forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=held.at(rows, end - width),
            use_cache=True,
            logits_to_keep=keep,
        )
        return ids, output.logits[:, -keep:]

    # -- sampling

    def _decode(self, prompts: list[list[int]], keys: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        """Sampled ids and their log-probabilities, a row each, up to and including the first end of sequence.

        Rows that have ended go behind the others in the cache, and the steps that follow leave them out.
        """
        backend, held, logits = self.backend, self.past, self.logits
        assert held is not None and logits is not None
        count, device, steps = len(prompts), held.mask.device, backend.sampling.max_new_tokens
        row_of = [0] * count  # by slot
        for row, slot in enumerate(self.slots):
            row_of[slot] = row
        sampler = TokenSampler(backend.sampling, sorted(backend.eos), keys, prompts, device)
        ids = torch.zeros((count, steps), dtype=torch.long, device=device)
        logprobs = torch.zeros((count, steps), device=device)
        lengths, fed = [steps] * count, [0] * count  # by row
        start, active = held.length, count
        position = held.mask.sum(-1)  # by slot
        rows = torch.tensor(row_of, device=device)
        going = [True] * count  # by slot
        for step in range(steps):
            tokens, ids_logprobs = sampler(logits, rows, step)
            ids[rows, step], logprobs[rows, step] = tokens, ids_logprobs
            ended = backend.ends(ids[rows, : step + 1]).tolist()
            for slot in range(active):
                if ended[slot] and going[slot]:
                    going[slot] = False
                    lengths[row_of[slot]] = step + 1
            if step + 1 == steps or not any(going[:active]):
                break
            remaining = sum(going[:active])
            if active - remaining >= DROP_SHARE * active:
                behind = [slot for slot in range(remaining) if not going[slot]]
                ahead = [slot for slot in range(remaining, active) if going[slot]]
                if behind:
                    held.exchange(behind, ahead)
                    for one, other in zip(behind, ahead, strict=True):
                        row_of[one], row_of[other] = row_of[other], row_of[one]
                        going[one], going[other] = True, False
                    order = torch.tensor(_exchanged(active, behind, ahead), device=device)
                    tokens, position = tokens[order], position[order]
                active = remaining
                tokens, position = tokens[:active], position[:active]
                rows = torch.tensor(row_of[:active], device=device)
            column = start + step
            held.mask[:active, column] = 1
            output = backend.forward(
                input_ids=tokens[:, None],
                attention_mask=held.mask[:active, : column + 1],
                position_ids=position[:, None] + step,
                past_key_values=held.at(slice(0, active), column),
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1]
            held.length = column + 1
            for slot in range(active):
                fed[row_of[slot]] = step + 1
        return self._taken(held, row_of, prompts, start, ids.tolist(), logprobs.tolist(), lengths, fed)

    def _taken(
        self,
        held: KeyValues,
        row_of: list[int],
        prompts: list[list[int]],
        start: int,
        ids: list[list[int]],
        logprobs: list[list[float]],
        lengths: list[int],
        fed: list[int],
    ) -> tuple[list[list[int]], list[list[float]]]:
        """What was sampled; the cache keeps of it what the conversation goes on from: no end of sequence, and nothing
        after it."""
        sampled = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        kept = [
            min(length - (row[-1] in self.backend.eos), count)
            for row, length, count in zip(sampled, lengths, fed, strict=True)
        ]
        counts = torch.tensor([kept[row] for row in row_of], device=held.mask.device)
        columns = torch.arange(held.length - start, device=held.mask.device)
        held.mask[:, start : held.length] = columns < counts[:, None]
        held.ids = [prompts[row] + sampled[row][: kept[row]] for row in row_of]
        self.logits = None
        self.slots = [slot for _, slot in sorted(zip(row_of, range(len(row_of)), strict=True))]
        return sampled, [row[:length] for row, length in zip(logprobs, lengths, strict=True)]

    # -- models whose cache cannot be branched: transformers' own `generate` feeds every row again

    def _generate(self, prompts: list[list[int]], keys: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        backend = self.backend
        sampled: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
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

    def _score(self, wanted: list[_Wanted]) -> list[Logprobs]:
        backend = self.backend
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
            for row, values in zip(rows, _logprobs(output.logits[:, -keep:], ids).tolist(), strict=True):
                logprobs[row] = wanted[row].scored(values)
        return logprobs


class _DrawInGenerate(LogitsProcessor):
    # Leaves `generate` no choice but the token that was drawn for each row.
    def __init__(self, backend: "HFBackend", keys: list[int], prompts: list[list[int]], device: torch.device) -> None:
        self.backend = backend
        self.sampler = TokenSampler(backend.sampling, sorted(backend.eos), keys, prompts, device)
        self.rows = torch.arange(len(prompts), device=device)
        self.ids = torch.zeros((len(prompts), backend.sampling.max_new_tokens), dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.ids.shape, device=device)
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


def _common_prefix(known: list[int], wanted: list[int]) -> int:
    if wanted[: len(known)] == known:
        return len(known)
    length = min(len(known), len(wanted))
    same = np.array(known[:length]) == np.array(wanted[:length])
    return length if same.all() else int(same.argmin())


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Natural log-probabilities (rows, positions - 1) of the last ids, each under the logits at the id before it."""
    rows, positions, vocabulary = logits.shape
    # The last position's logits tell what is not there yet: including it saves a copy of all the others.
    followers = ids[:, -positions:].roll(-1, dims=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, vocabulary), followers.reshape(-1), reduction="none"
    )
    return -losses.view(rows, positions)[:, :-1]


def _exchanged(count: int, ones: list[int], others: list[int]) -> list[int]:
    order = list(range(count))
    for one, other in zip(ones, others, strict=True):
        order[one], order[other] = other, one
    return order
