"""Keys and values of many rows, kept over all turns in one growing buffer per layer.

The only module that depends on the internals of transformers' caches.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from astra_trl.backends.hf.masks import PER_TOKEN, WITHOUT_STATE, limits_columns, takes_complete_masks
from astra_trl.backends.hf.memory import Budget


def can_branch(config: PreTrainedConfig) -> bool:
    """Return `True` if every layer has one key and one value per token, and a mask alone decides which of them count.

    Then the past of a row can be copied to its children and can have holes. A 2-D mask says nothing about a sliding
    window, whose columns the holes would shift, so that it has to be complete.
    """
    full = all(type(layer) in PER_TOKEN for layer in DynamicCache(config=config).layers)
    return (full and not limits_columns(config)) or takes_complete_masks(config)


def can_pad(config: PreTrainedConfig) -> bool:
    """Return `True` if padding on the left has no effect in any layer; a recurrent state can remember it."""
    return all(type(layer) in WITHOUT_STATE for layer in DynamicCache(config=config).layers)


@dataclass(frozen=True)
class CacheSpec:
    """Properties that all caches of a model share."""

    device: torch.device
    layers: int
    bytes_per_token: int
    budget: Budget


@dataclass
class _Window:
    """The part of the buffers that the next forward pass writes; all layers share it."""

    slots: int
    columns: int
    rows: slice = field(default_factory=lambda: slice(0))
    start: int = 0


class _BufferLayer(DynamicLayer):
    """Writes into a buffer with room for the whole turn; transformers' layer copies the whole past at each step."""

    is_initialized: bool

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        window = self.window
        if not self.is_initialized:
            self.is_initialized = True
            self.dtype, self.device = keys.dtype, keys.device
            # Zeros, because an attention weight of 0 multiplies the content of a hole.
            self.keys, self.values = (
                new.new_zeros((window.slots, new.shape[1], window.columns, new.shape[3])) for new in (keys, values)
            )
        stop = window.start + keys.shape[-2]
        self.keys[window.rows, :, window.start : stop] = keys
        self.values[window.rows, :, window.start : stop] = values
        return self.keys[window.rows, :, :stop], self.values[window.rows, :, :stop]

    def get_seq_length(self) -> int:
        return self.window.start

    def select(self, window: _Window, slots: torch.Tensor, columns: slice) -> "_BufferLayer":
        new = _BufferLayer(window)
        if self.is_initialized:
            new.is_initialized, new.dtype, new.device = True, self.dtype, self.device
            new.keys, new.values = (_select(window, old, slots, columns) for old in (self.keys, self.values))
        return new

    def exchange(self, ones: torch.Tensor, others: torch.Tensor, length: int) -> None:
        for buffer in (self.keys, self.values):
            if buffer is not None:
                _exchange(buffer[:, :, :length], ones.to(buffer.device), others.to(buffer.device))


def _select(window: _Window, old: torch.Tensor, slots: torch.Tensor, columns: slice) -> torch.Tensor:
    new = old.new_empty((window.slots, old.shape[1], window.columns, old.shape[3]))
    length = columns.stop - columns.start
    torch.index_select(old[:, :, columns], 0, slots.to(old.device), out=new[:, :, :length])
    new[:, :, length:] = 0
    return new


def _exchange(rows: torch.Tensor, ones: torch.Tensor, others: torch.Tensor) -> None:
    before = rows[ones]
    rows[ones] = rows[others]
    rows[others] = before


class KeyValues:
    """The keys and values of many rows: one slot per row, one column per token.

    Rows differ in length and end at different times, so columns have holes; `mask` is 0 there. `ids` are the token ids
    of a slot's keys and values, in the order of its columns without the holes.
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

    def first_columns(self) -> list[int]:
        """Return the column of each slot's first token. All columns before it are holes."""
        return self.mask[:, : self.length].argmax(-1).tolist() if self.length else [0] * len(self.mask)

    def first_column(self, slots: Sequence[int], counts: Sequence[int]) -> int:
        """Return the first column that any of these slots needs if the first `counts` tokens of each are reused."""
        starts = self.first_columns()
        return min((starts[slot] for slot, count in zip(slots, counts, strict=True) if count), default=self.length)

    def select(self, slots: Sequence[int], counts: Sequence[int], start: int, columns: int) -> "KeyValues":
        """Copy these slots, the first `counts` tokens of each, into buffers of `columns` columns.

        The columns before `start` are left out.
        """
        device = self.mask.device
        new = KeyValues(self.spec, len(slots), columns)
        index = torch.tensor(slots, device=device)
        old = slice(start, self.length)
        new.length = self.length - start
        new.cache.layers = [layer.select(new.window, index, old) for layer in self.cache.layers]
        mask = self.mask[index, old]
        new.mask[:, : new.length] = mask * (mask.cumsum(-1) <= torch.tensor(counts, device=device)[:, None])
        new.ids = [self.ids[slot][:count] for slot, count in zip(slots, counts, strict=True)]
        return new

    def exchange(self, ones: Sequence[int], others: Sequence[int]) -> None:
        """Exchange the keys, values and masks of two lists of slots."""
        if not ones:
            return
        device = self.mask.device
        left, right = torch.tensor(ones, device=device), torch.tensor(others, device=device)
        for layer in self.cache.layers:
            layer.exchange(left, right, self.length)
        _exchange(self.mask, left, right)

    def at(self, rows: slice, start: int) -> Cache:
        """Return the cache for a forward pass over some slots that writes to columns from `start`."""
        self.window.rows, self.window.start = rows, start
        return self.cache
