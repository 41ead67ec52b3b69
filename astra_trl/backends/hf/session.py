"""The rollout engine: many conversations grow together, and each token passes through the model once.

A session compares token ids to find the part of a row that it has computed before; it assumes nothing. New tokens are
fed in blocks that are padded on the left, so that a row's columns have holes: positions come from the running sum of
its mask.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch

from astra_trl.backends.base import Logprobs, OutOfMemory, Sample, SavedRow, Sizes, derive_seed
from astra_trl.backends.hf.cache import KeyValues
from astra_trl.backends.hf.decoding import decode, inverse
from astra_trl.backends.hf.dialogue import Row
from astra_trl.backends.hf.model import HFModel
from astra_trl.backends.hf.refeeding import Feed, following_logprobs, generate, score, similar_width
from astra_trl.errors import NotFinite

MAX_LOGITS_BYTES = 2**28  # of one forward pass that scores
MIN_SHARED_TOKENS = 8  # to feed fewer to each child costs less than a forward pass over their parents


class HFSession:
    """The rows of an [`HFBackend`], each with a random key. `source` is a session and its row for each of them."""

    def __init__(
        self,
        backend: HFModel,
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
        self.source = source  # until the first token is needed
        self.unfed: weakref.WeakSet[HFSession] = weakref.WeakSet()  # branches that still need the past
        self.is_released = False
        self.past: KeyValues | None = None
        self.slots: list[int] = []  # of each row in the past
        self.logits: torch.Tensor | None = None  # (slots, vocabulary), of the token after the past

    @property
    def max_rows(self) -> int | None:
        return self.backend.max_rows

    def sizes(self) -> Sizes | None:
        backend = self.backend
        if not self.branches:
            return None
        past, slots, _ = self._latest()
        holes = [0] * len(self.rows)
        if past is not None:
            starts = past.first_columns()
            holes = [past.length - starts[slot] - len(past.ids[slot]) for slot in slots]
        # The utterances of both sides in the next turn, and half of the rest, so that branches of branches fit too.
        new = backend.sampling.max_new_tokens
        lengths = [len(row.ids) + 3 * new for row in self.rows]
        if backend.window is not None:
            lengths = [min(length, backend.window + new) for length in lengths]
        spec, free = backend.cache_spec, backend.budget.free
        columns = [length + count for length, count in zip(lengths, holes, strict=True)]
        row_bytes = [count * spec.bytes_per_token for count in columns]
        return Sizes(row_bytes, backend.pass_bytes, None if free is None else free // 2)

    def branch(self, children: Sequence[tuple[int, int]]) -> "HFSession":
        session = HFSession(
            self.backend,
            [self.rows[row] for row, _ in children],
            [derive_seed(self.keys[row], sibling) for row, sibling in children],
            self.with_logprobs,
            (self, [row for row, _ in children]),
        )
        self.unfed.add(session)
        return session

    def release(self) -> None:
        self.is_released = True
        self._free_unneeded()

    def sample(self) -> list[Sample]:
        backend = self.backend
        prompts = [backend.fit(row.ids) for row in self.rows]
        keys = [derive_seed(key, self.utterances) for key in self.keys]
        with self._running():
            if self.branches:
                if self.source is not None:
                    self.source[0]._feed_before_branch(all_tokens=True)
                self._feed([Feed(ids) for ids in prompts], room=backend.sampling.max_new_tokens)
                assert self.past is not None and self.logits is not None
                utterances, logprobs, self.slots = decode(backend, self.past, self.slots, self.logits, prompts, keys)
                self.logits = None
            else:
                utterances, logprobs = generate(backend, prompts, keys)
        if any(math.isnan(value) for row in logprobs for values in row for value in values):
            raise NotFinite(
                f"{backend.model.config.name_or_path!r} computes nan instead of probabilities: its weights are nan or "
                f"infinite, or too large for {backend.model.dtype}: give another, or load it with --dtype float32",
                backend,
            )
        samples = [
            Sample(
                text,
                prompt,
                ids,
                [values[0] for values in row],
                untempered_logprobs=[values[1] for values in row] if backend.untempered else [],
                cut=cut,
            )
            for text, prompt, ids, row, cut in zip(
                backend.texts(utterances), prompts, utterances, logprobs, backend.unfinished(utterances), strict=True
            )
        ]
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        backend = self.backend
        self.utterances += 1
        utterances = [backend.without_end(sample.ids) for sample in samples]
        self.rows = [
            backend.dialogue.append_own(row, ids, text)
            for row, ids, text in zip(self.rows, utterances, backend.decode(utterances), strict=True)
        ]

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        backend = self.backend
        longer = list(backend.dialogue.append_other(self.rows, texts))
        logprobs: list[Logprobs] | None = None
        if self.with_logprobs:
            feeds = []
            for row, start, stop in longer:
                ids = backend.fit(row.ids)
                cut = len(row.ids) - len(ids)
                # The very first token has no log-probability, and a BOS is not scored.
                first = max(1, len(backend.dialogue.head))
                feeds.append(Feed(ids, max(start - cut, first), max(stop - cut, first)))
            with self._running():
                if self.branches:
                    if self.source is not None:
                        self.source[0]._feed_before_branch(all_tokens=False)
                    logprobs = self._feed(feeds, room=backend.sampling.max_new_tokens)
                else:
                    logprobs = score(backend, feeds)
        self.rows = [row for row, _, _ in longer]
        return logprobs

    def saved(self) -> list[SavedRow]:
        # Rows of several sessions differ in the number of their utterances, so that it becomes a part of the key.
        return [
            SavedRow(self.backend.fit(row.ids), {**asdict(row), "key": derive_seed(key, "saved", self.utterances)})
            for row, key in zip(self.rows, self.keys, strict=True)
        ]

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with self.backend.inference():
                yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one too
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise OutOfMemory(str(error)) from None

    # -- feeding

    def _feed_before_branch(self, all_tokens: bool) -> None:
        """Feed the tokens that all children share.

        These are all tokens if the children sample next, else all but the last one, whose logits belong to the text
        that each child appends.
        """
        prompts = [self.backend.fit(row.ids) for row in self.rows]
        if not all_tokens:
            prefixes = [0] * len(prompts)
            if self.past is not None and self.source is None:
                prefixes = [len(self.past.ids[slot]) for slot in self.slots]
            if max(len(ids) - count for ids, count in zip(prompts, prefixes, strict=True)) <= MIN_SHARED_TOKENS:
                return
            prompts = [ids[:-1] or ids for ids in prompts]
        if self.source is not None:
            self.source[0]._feed_before_branch(all_tokens)
        self._feed([Feed(ids) for ids in prompts], room=0)

    def _feed(self, feeds: list[Feed], room: int) -> list[Logprobs]:
        """Compute the keys and values of all feeds, with room for more columns; return the log-probabilities."""
        past, slots, logits = self._latest()
        prefixes = [0] * len(feeds)
        if past is not None:
            prefixes = [_common_prefix(past.ids[slot], feed.ids) for slot, feed in zip(slots, feeds, strict=True)]
        if past is not None and logits is not None and prefixes == [len(feed.ids) for feed in feeds]:
            if past is not self.past or past.window.columns < past.length + room:
                start = past.first_column(slots, prefixes)
                new = past.select(slots, prefixes, start, past.length - start + room)
                self._hold(new, list(range(len(feeds))), logits[torch.tensor(slots, device=logits.device)])
            return [[] for _ in feeds]
        reuse = [0] * len(feeds)
        if past is not None:
            for row, (feed, slot) in enumerate(zip(feeds, slots, strict=True)):
                # A row that was cut on the left, or rewritten, shares little with its past: it is fed anew.
                if 2 * prefixes[row] >= min(len(past.ids[slot]), len(feed.ids)):
                    reuse[row] = min(prefixes[row], feed.first_logit)
        widths = [len(feed.ids) - count for feed, count in zip(feeds, reuse, strict=True)]
        # Rows fed anew are separate, and all are sorted by width, so that few tokens are not padded to many.
        order = sorted(range(len(feeds)), key=lambda row: (reuse[row] == 0, widths[row]))
        first = past.first_column(slots, reuse) if past is not None else 0
        length = past.length - first if past is not None else 0
        # A row that is fed anew can overwrite its own old columns.
        end = max(length + width if count else width for count, width in zip(reuse, widths, strict=True))
        if past is not None and any(reuse):
            new = past.select([slots[row] for row in order], [reuse[row] for row in order], first, end + room)
        else:
            new = KeyValues(self.backend.cache_spec, len(feeds), end + room)
        logprobs: list[Logprobs] = [[] for _ in feeds]
        last = []
        for start, stop in self._slices([(reuse[row] == 0, widths[row], feeds[row]) for row in order]):
            rows = order[start:stop]
            keep = max(feeds[row].logits for row in rows)
            blocks = [feeds[row].ids[reuse[row] :] for row in rows]
            ids, output = self._forward(new, slice(start, stop), end, blocks, keep)
            last.append(output[:, -1].clone() if keep > 1 else output[:, -1])
            if keep > 1:
                for row, values in zip(rows, following_logprobs(output, ids).tolist(), strict=True):
                    logprobs[row] = feeds[row].select(values)
            del output
        new.length = end
        new.ids = [feeds[row].ids for row in order]
        self._hold(new, inverse(order), torch.cat(last))
        return logprobs

    def _latest(self) -> tuple[KeyValues | None, list[int], torch.Tensor | None]:
        """Return what is computed of the rows: the past, the slot of each row, and the logits after the past."""
        if self.source is None:
            return self.past, self.slots, self.logits
        parent, rows = self.source
        return parent.past, [parent.slots[row] for row in rows] if parent.past is not None else [], parent.logits

    def _hold(self, past: KeyValues, slots: list[int], logits: torch.Tensor) -> None:
        self.past, self.slots, self.logits = past, slots, logits
        if self.source is not None:
            parent, self.source = self.source[0], None
            parent.unfed.discard(self)
            parent._free_unneeded()

    def _free_unneeded(self) -> None:
        if self.is_released and not self.unfed:
            self.past, self.slots, self.logits = None, [], None

    def _slices(self, rows: list[tuple[bool, int, Feed]]) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows for one forward pass each: of similar width, and with logits that fit in memory."""
        start, keep = 0, 1
        for stop, (fresh, width, feed) in enumerate(rows):
            first_fresh, first_width, _ = rows[start]
            keep = max(keep, feed.logits)
            size = 4 * (stop + 1 - start) * keep * self.backend.vocabulary
            alike = fresh == first_fresh and width <= similar_width(first_width)
            if stop > start and not (alike and (keep == 1 or size <= MAX_LOGITS_BYTES)):
                yield start, stop
                start, keep = stop, feed.logits
        yield start, len(rows)

    def _forward(
        self, past: KeyValues, rows: slice, end: int, blocks: list[list[int]], keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (rows, widest block) and logits (rows, `keep`, vocabulary) of blocks up to column `end`."""
        ids, block_mask = self.backend.left_padded(blocks)
        width = ids.shape[1]
        past.mask[rows, end - width : end] = block_mask
        mask = past.mask[rows, :end]
        positions = (mask.cumsum(-1)[:, -width:] - 1).clamp_(min=0)
        output = self.backend.forward(
            input_ids=ids,
            attention_mask=self.backend.attention_mask(mask, width),
            position_ids=positions,
            past_key_values=past.at(rows, end - width),
            use_cache=True,
            logits_to_keep=keep,
        )
        return ids, output.logits[:, -keep:]


def _common_prefix(past: list[int], ids: list[int]) -> int:
    if ids[: len(past)] == past:
        return len(past)
    length = min(len(past), len(ids))
    same = np.array(past[:length]) == np.array(ids[:length])
    return length if same.all() else int(same.argmin())
