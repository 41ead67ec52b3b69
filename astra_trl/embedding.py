"""What texts mean, as vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_trl.errors import MissingExtra
from astra_trl.untrusted import refuse_pickled_embedder, told

# Texts -> an array with a row each.
Embedder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class SentenceEmbedder:
    """Texts -> a row each, by a `SentenceTransformer`, called `name` in an evaluation's settings."""

    model: Any
    name: str = "given"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)


def load_embedder(model_id: str, extra: str = "novelty", allow_pickle: bool = False) -> Embedder:
    """Sentence embeddings by a model of the sentence-transformers library: a Hub id or a folder.

    Raises `MissingExtra` with `extra` in its message where the library is not installed, and `InputError` where the
    model cannot be loaded, as where its weights are a pickle and `allow_pickle` does not let them be, or where it
    brings code of its own.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"sentence embeddings need sentence-transformers: pip install 'astra-trl[{extra}]', or leave out the "
            "embedder"
        ) from missing
    with told("embedder", model_id, "name a Hub id or a folder of a model of sentence-transformers"):
        if not allow_pickle:
            refuse_pickled_embedder(model_id)
        kwargs = {} if allow_pickle else {"use_safetensors": True}
        return SentenceEmbedder(SentenceTransformer(model_id, model_kwargs=kwargs, trust_remote_code=False), model_id)
