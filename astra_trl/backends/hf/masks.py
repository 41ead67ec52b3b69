"""Attention masks of a transformers model whose columns are not simply one text after the other: rows with holes, and
rows that share a context."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Layers with one key and one value per token, or with none; transformers before 5.23 has no class for the latter.
PER_TOKEN = {DynamicLayer, getattr(cache_utils, "DummyLayer", DynamicLayer)}


def takes_complete_masks(config: PreTrainedConfig) -> bool:
    """Return `True` if every layer takes a 4-D mask, which decides alone what a token attends to.

    Flash attention takes none. Chunked attention needs positions that the mask does not have, and a recurrent state
    has no columns.
    """
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    text = config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) or getattr(
        text, "attention_chunk_size", None
    ):
        return False
    return all(type(layer) in {*PER_TOKEN, DynamicSlidingWindowLayer} for layer in DynamicCache(config=config).layers)


def complete_mask(
    config: PreTrainedConfig,
    allowed: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    dtype: torch.dtype,
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

    Returns:
        `torch.Tensor` or `dict`: a 4-D mask, or one for each kind of layer if the model has two kinds.
    """
    windows = {getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers}
    masks = {}
    for window in windows:
        within = allowed
        if window is not None:
            within = allowed & (query_positions[:, :, None] - key_positions[:, None, :] < window)
        masks["full_attention" if window is None else "sliding_attention"] = _in_form(config, within[:, None], dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _in_form(config: PreTrainedConfig, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
