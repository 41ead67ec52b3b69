"""Keys and values of many rows, kept from turn to turn in one growing buffer a layer.

The one place that knows how transformers' caches are built inside.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from astra_trl.backends.base import OutOfMemory


def can_branch(config: PreTrainedConfig) -> bool:
    """Whether every layer of a model keeps one key and one value a token, so that a row's past can be copied to its
    children and may have holes. Not so with a sliding window, whose columns holes would shift, nor with a recurrent
    state."""
    return all(type(layer) in (DynamicLayer, DummyLayer) for layer in DynamicCache(config=config).layers)


def can_pad(config: PreTrainedConfig) -> bool:
    """Whether padding on the left leaves no trace in any layer: a recurrent state may remember it."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return all(type(layer) in plain for layer in DynamicCache(config=config).layers)


@dataclass
class Budget:
    """Bytes that caches may hold at a time, and those they hold. `None` bounds nothing."""

    limit: int | None = None
    held: int = 0
    peak: int = field(default=0, init=False)

    def take(self, count: int) -> None:
        """Counts bytes as held; `OutOfMemory` where there are not so many left."""
        if self.limit is not None and self.held + count > self.limit:
            raise OutOfMemory(
                f"keys and values would take {self.held + count:,} bytes, and their budget is {self.limit:,}: raise "
                "cache_bytes, or lower max_length"
            )
        self.held += count
        self.peak = max(self.peak, self.held)

    def give_back(self, count: int) -> None:
        self.held -= count


@dataclass(frozen=True)
class CacheSpec:
    """What all caches of a model have in common."""

    device: torch.device
    layers: int
    bytes_per_token: int
    budget: Budget


@dataclass
class _Window:
    # The part of the buffers that the next forward pass writes to; shared by all layers.
    slots: int
    columns: int
    rows: slice = field(default_factory=lambda: slice(0))
    start: int = 0


class _BufferLayer(DynamicLayer):
    # Writes into a buffer with room for the whole turn, where transformers' layer copies all the past at each step.
    is_initialized: bool

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        window = self.window
        if not self.is_initialized:
            self.is_initialized = True
            self.dtype, self.device = keys.dtype, keys.device
            # Zeros, as what lies in a hole is multiplied by an attention weight of 0.
            self.keys, self.values = (
                new.new_zeros((window.slots, new.shape[1], window.columns, new.shape[3])) for new in (keys, values)
            )
        stop = window.start + keys.shape[-2]
        self.keys[window.rows, :, window.start : stop] = keys
        self.values[window.rows, :, window.start : stop] = values
        return self.keys[window.rows, :, :stop], self.values[window.rows, :, :stop]

    def get_seq_length(self) -> int:
        return self.window.start

    def selected(self, window: _Window, slots: torch.Tensor, length: int) -> "_BufferLayer":
        new = _BufferLayer(window)
        if self.is_initialized:
            new.is_initialized, new.dtype, new.device = True, self.dtype, self.device
            new.keys, new.values = (self._copied(window, old, slots, length) for old in (self.keys, self.values))
        return new

    @staticmethod
    def _copied(window: _Window, old: torch.Tensor, slots: torch.Tensor, length: int) -> torch.Tensor:
        new = old.new_empty((window.slots, old.shape[1], window.columns, old.shape[3]))
        torch.index_select(old[:, :, :length], 0, slots.to(old.device), out=new[:, :, :length])
        new[:, :, length:] = 0
        return new

    def exchange(self, ones: torch.Tensor, others: torch.Tensor, length: int) -> None:
        for buffer in (self.keys, self.values):
            if buffer is not None:
                _exchange(buffer[:, :, :length], ones.to(buffer.device), others.to(buffer.device))


class KeyValues:
    """What a model has computed of many rows: a slot a row, a column a token.

    Rows differ in length and end at different times, so columns have holes; `mask` tells which count. `ids` are the
    token ids whose keys and values a slot holds, in the order of its columns that count.
    """

    def __init__(self, spec: CacheSpec, slots: int, columns: int) -> None:
        self.spec = spec
        size = slots * columns * spec.bytes_per_token
        spec.budget.take(size)
        weakref.finalize(self, spec.budget.give_back, size)
        self.window = _Window(slots, columns)
        self.cache = Cache(layers=[_BufferLayer(self.window) for _ in range(spec.layers)])
        self.mask = torch.zeros((slots, columns), dtype=torch.long, device=spec.device)
        self.length = 0
        self.ids: list[list[int]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        buffers = [buffer for layer in self.cache.layers for buffer in (layer.keys, layer.values)]
        return sum(buffer.nbytes for buffer in buffers if buffer is not None)

    def select(self, slots: Sequence[int], kept: Sequence[int], columns: int) -> "KeyValues":
        """A copy of these slots, with the first `kept` tokens of each and room for `columns` columns."""
        device = self.mask.device
        new = KeyValues(self.spec, len(slots), columns)
        index = torch.tensor(slots, device=device)
        length = self.length
        new.cache.layers = [layer.selected(new.window, index, length) for layer in self.cache.layers]
        mask = self.mask[index, :length]
        new.mask[:, :length] = mask * (mask.cumsum(-1) <= torch.tensor(kept, device=device)[:, None])
        new.length = length
        new.ids = [self.ids[slot][:count] for slot, count in zip(slots, kept, strict=True)]
        return new

    def exchange(self, ones: Sequence[int], others: Sequence[int]) -> None:
        """Exchanges the keys, values and masks of two lists of slots."""
        if not ones:
            return
        device = self.mask.device
        left, right = torch.tensor(ones, device=device), torch.tensor(others, device=device)
        for layer in self.cache.layers:
            layer.exchange(left, right, self.length)
        _exchange(self.mask, left, right)

    def at(self, rows: slice, start: int) -> Cache:
        """The cache for a forward pass over some slots that writes from column `start` on."""
        self.window.rows, self.window.start = rows, start
        return self.cache


def _exchange(rows: torch.Tensor, ones: torch.Tensor, others: torch.Tensor) -> None:
    kept = rows[ones]
    rows[ones] = rows[others]
    rows[others] = kept
