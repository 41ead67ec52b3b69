"""Attention masks of a transformers model whose columns are not simply one text after the other: rows with holes, and
rows that share a context."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Layers with one key and one value per token, or with none; transformers before 5.23 has no class for the latter.
PER_TOKEN = {DynamicLayer, getattr(cache_utils, "DummyLayer", DynamicLayer)}
WITHOUT_STATE = {*PER_TOKEN, DynamicSlidingWindowLayer}


def limits_columns(config: PreTrainedConfig) -> bool:
    """Return `True` if layers have a window of columns that no mask changes: GPT-Neo's local attention."""
    return "local" in (getattr(config.get_text_config(decoder=True), "attention_layers", None) or ())


def takes_complete_masks(config: PreTrainedConfig) -> bool:
    """Return `True` if every layer takes a 4-D mask, which decides alone what a token attends to.

    Flash attention takes none. Chunked attention needs positions that the mask does not have, and a recurrent state
    has no columns. A mask of two kinds has no place for two sizes of windows.
    """
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    text = config.get_text_config(decoder=True)
    if (
        limits_columns(config)
        or "chunked_attention" in (getattr(text, "layer_types", None) or ())
        or getattr(text, "attention_chunk_size", None)
    ):
        return False
    layers = DynamicCache(config=config).layers
    return all(type(layer) in WITHOUT_STATE for layer in layers) and len(attention_windows(config) - {None}) < 2


def attention_windows(config: PreTrainedConfig) -> frozenset[int | None]:
    """Return the sizes of the layers' sliding windows in tokens; `None` stands for full attention."""
    return frozenset(getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers)


def complete_mask(
    config: PreTrainedConfig,
    allowed: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    dtype: torch.dtype,
    windows: Iterable[int | None],
) -> Any:
    """Return the argument `attention_mask` of a model that `takes_complete_masks`.

    Args:
        allowed (`torch.Tensor`):
            Booleans (rows, queries, keys): the keys that a query may attend to in a layer of full attention.
        query_positions (`torch.Tensor`), key_positions (`torch.Tensor`):
            Positions (rows, queries) and (rows, keys). A layer with a sliding window of `n` tokens attends to keys
            that are less than `n` positions away.
        dtype (`torch.dtype`):
            Type of the numbers that eager attention adds to its scores.
        windows (`Iterable[int | None]`):
            The model's `attention_windows`, which take a millisecond to find.

    Returns:
        `torch.Tensor` or `dict`: a 4-D mask, or one for each kind of layer if the model has two kinds.
    """
    masks = {}
    for window in windows:
        within = allowed
        if window is not None:
            within = allowed & (key_positions[:, None, :] > (query_positions - window)[:, :, None])
        masks["full_attention" if window is None else "sliding_attention"] = _in_form(config, within[:, None], dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _in_form(config: PreTrainedConfig, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
