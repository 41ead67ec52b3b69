"""What texts mean, as vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_trl.errors import InputError, MissingExtra

# Texts -> an array with a row each.
Embedder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class SentenceEmbedder:
    """Texts -> a row each, by a `SentenceTransformer`."""

    model: Any

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)


def load_embedder(model_id: str, extra: str = "novelty") -> Embedder:
    """Sentence embeddings by a model of the sentence-transformers library: a Hub id or a folder.

    Raises `MissingExtra` with `extra` in its message where the library is not installed, and `InputError` where the
    model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"sentence embeddings need sentence-transformers: pip install 'astra-trl[{extra}]', or leave out the "
            "embedder"
        ) from missing
    try:
        return SentenceEmbedder(SentenceTransformer(model_id))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"embedder {model_id!r} could not be loaded: name a Hub id or a folder of a model of "
            f"sentence-transformers ({reason})"
        ) from error
