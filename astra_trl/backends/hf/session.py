"""The rollout engine: many conversations grow together, and each token passes through the model once.

A session compares token ids to find what of a row it has computed before; it never assumes. What is new is fed in
blocks padded on the left, so that a row's columns have holes: positions come from the running sum of its mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from astra_trl.backends.base import Logprobs, OutOfMemory, Sample, SavedRow, derive_seed
from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.decoding import decode, inverse
from astra_trl.backends.hf.dialogue import Row
from astra_trl.backends.hf.refeeding import generate, score
from astra_trl.backends.hf.scoring import Wanted, following_logprobs

if TYPE_CHECKING:
    from astra_trl.backends.hf.backend import HFBackend

LOGITS_BYTES = 2**28  # of one forward pass that scores
SHARED_FROM = 8  # tokens: feeding fewer to each child costs less than a forward pass over their parents


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
                self._feed([Wanted(ids) for ids in prompts], room=backend.sampling.max_new_tokens)
                assert self.past is not None and self.logits is not None
                sampled, logprobs, self.slots = decode(backend, self.past, self.slots, self.logits, prompts, keys)
                self.logits = None
            else:
                sampled, logprobs = generate(backend, prompts, keys)
        samples = [
            Sample(
                text,
                prompt,
                ids,
                [values[0] for values in row],
                untempered_logprobs=[values[1] for values in row] if backend.untempered else [],
            )
            for text, prompt, ids, row in zip(backend.texts(sampled), prompts, sampled, logprobs, strict=True)
        ]
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        backend = self.backend
        self.utterances += 1
        said = [backend.without_end(sample.ids) for sample in samples]
        self.rows = [
            backend.dialogue.said(row, ids, text)
            for row, ids, text in zip(self.rows, said, backend.decoded(said), strict=True)
        ]

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
                wanted.append(Wanted(ids, max(start - cut, first), max(stop - cut, first)))
            with self._running():
                if self.branches:
                    if self.source is not None:
                        self.source[0]._feed_before_branch(all_of_it=False)
                    logprobs = self._feed(wanted, room=backend.sampling.max_new_tokens)
                else:
                    logprobs = score(backend, wanted)
        self.rows = [row for row, _, _ in heard]
        return logprobs

    def saved(self) -> list[SavedRow]:
        # A session counts its utterances and those of rows from several differ, so that the count goes into the key.
        return [
            SavedRow(self.backend.fit(row.ids), {**asdict(row), "key": derive_seed(key, "saved", self.utterances)})
            for row, key in zip(self.rows, self.keys, strict=True)
        ]

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
            own = self.past is not None and self.source is None
            known = [len(self.past.ids[slot]) for slot in self.slots] if own and self.past else [0] * len(prompts)
            if max(len(ids) - count for ids, count in zip(prompts, known, strict=True)) <= SHARED_FROM:
                return
            prompts = [ids[:-1] or ids for ids in prompts]
        if self.source is not None:
            self.source[0]._feed_before_branch(all_of_it)
        self._feed([Wanted(ids) for ids in prompts], room=0)

    def _feed(self, wanted: list[Wanted], room: int) -> list[Logprobs]:
        """Makes the cache hold what is wanted, with room for more columns; returns the log-probabilities asked for."""
        past, slots, logits = self.past, self.slots, self.logits
        if self.source is not None:
            parent, of = self.source
            past, logits = parent.past, parent.logits
            slots = [parent.slots[row] for row in of] if past is not None else []
        known = [0] * len(wanted)
        if past is not None:
            known = [_common_prefix(past.ids[slot], w.ids) for slot, w in zip(slots, wanted, strict=True)]
        if past is not None and logits is not None and known == [len(w.ids) for w in wanted]:
            if past is not self.past or past.window.columns < past.length + room:
                self._hold(past.select(slots, known, past.length + room), list(range(len(wanted))))
                self.logits = logits[torch.tensor(slots, device=logits.device)]
            return [[] for _ in wanted]
        kept = [0] * len(wanted)
        if past is not None:
            for row, (w, slot) in enumerate(zip(wanted, slots, strict=True)):
                # A row that was cut on the left, or rewritten, shares little with its past: it is fed anew.
                if 2 * known[row] >= min(len(past.ids[slot]), len(w.ids)):
                    kept[row] = min(known[row], w.first_logit)
        widths = [len(w.ids) - k for k, w in zip(kept, wanted, strict=True)]
        # Rows fed anew by themselves, and all by width, so that few tokens are not padded to many.
        order = sorted(range(len(wanted)), key=lambda row: (kept[row] == 0, widths[row]))
        length = past.length if past is not None else 0
        # A row that is fed anew may lie over its own old columns.
        end = max(length + width if k else width for k, width in zip(kept, widths, strict=True))
        if past is not None and any(kept):
            held = past.select([slots[row] for row in order], [kept[row] for row in order], end + room)
        else:
            held = KeyValues(self.backend.cache_spec, len(wanted), end + room)
        logprobs: list[Logprobs] = [[] for _ in wanted]
        last = []
        for start, stop in self._slices([(kept[row] == 0, widths[row], wanted[row]) for row in order]):
            rows = order[start:stop]
            keep = max(len(wanted[row].ids) - wanted[row].first_logit for row in rows)
            blocks = [wanted[row].ids[kept[row] :] for row in rows]
            ids, output = self._forward(held, slice(start, stop), end, blocks, keep)
            last.append(output[:, -1].clone() if keep > 1 else output[:, -1])
            if keep > 1:
                for row, values in zip(rows, following_logprobs(output, ids).tolist(), strict=True):
                    logprobs[row] = wanted[row].scored(values)
            del output
        held.length = end
        held.ids = [wanted[row].ids for row in order]
        self._hold(held, inverse(order))
        self.logits = torch.cat(last)
        return logprobs

    def _hold(self, past: KeyValues, slots: list[int]) -> None:
        self.past, self.slots, self.source = past, slots, None

    def _slices(self, rows: list[tuple[bool, int, Wanted]]) -> Iterator[tuple[int, int]]:
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
        ids, block_mask = self.backend.left_padded(blocks)
        width = ids.shape[1]
        held.mask[rows, end - width : end] = block_mask
        mask = held.mask[rows, :end]
        positions = (mask.cumsum(-1)[:, -width:] - 1).clamp_(min=0)
        output = self.backend.forward(
            input_ids=ids,
            attention_mask=self.backend.attention_mask(mask, width),
            position_ids=positions,
            past_key_values=held.at(rows, end - width),
            use_cache=True,
            logits_to_keep=keep,
        )
        return ids, output.logits[:, -keep:]


def _common_prefix(known: list[int], wanted: list[int]) -> int:
    if wanted[: len(known)] == known:
        return len(known)
    length = min(len(known), len(wanted))
    same = np.array(known[:length]) == np.array(wanted[:length])
    return length if same.all() else int(same.argmin())
