"""Sentence embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_trl.errors import MissingExtra
from astra_trl.libraries import loading_errors
from astra_trl.progress import DELAY, ProgressBar
from astra_trl.untrusted import refuse_pickled_embedder

AT_A_TIME = 512  # texts per call of the model, which sorts them by length

Embedder = Callable[[Sequence[str]], np.ndarray]  # texts -> an array with one row per text


@dataclass(frozen=True, eq=False)
class SentenceEmbedder:
    """An embedder from a `SentenceTransformer`. `name` identifies it in the settings of an evaluation."""

    model: Any
    name: str = "given"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        parts = [list(texts[start : start + AT_A_TIME]) for start in range(0, len(texts), AT_A_TIME)] or [[]]
        vectors = []
        with ProgressBar("embedding", len(texts), "texts", delay=DELAY) as bar:
            for part in parts:
                vectors.append(self.model.encode(part, show_progress_bar=False, convert_to_numpy=True))
                bar.update(len(part))
        return np.concatenate(vectors) if len(vectors) > 1 else vectors[0]


def embed_once(embed: Embedder) -> Embedder:
    """Return an embedder that computes the vector of each text once and remembers it."""
    vectors: dict[str, np.ndarray] = {}

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in vectors]:
            vectors.update(zip(new, embed(new), strict=True))
        return np.array([vectors[text] for text in texts])

    return embed_texts


def load_embedder(model_id: str, extra: str = "novelty", allow_pickle: bool = False) -> Embedder:
    """Load a model of the sentence-transformers library from a Hub id or a folder.

    Raises:
        MissingExtra: the library is not installed; the message names `extra`.
        InputError: the model cannot be loaded, needs code of its own, or has its weights in a pickle although
            `allow_pickle` is `False`.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"sentence embeddings need sentence-transformers: pip install 'astra-trl[{extra}]', or leave out the "
            "embedder"
        ) from missing
    with loading_errors("embedder", model_id, "name a Hub id or a folder of a model of sentence-transformers"):
        if not allow_pickle:
            refuse_pickled_embedder(model_id)
        kwargs = {} if allow_pickle else {"use_safetensors": True}
        return SentenceEmbedder(SentenceTransformer(model_id, model_kwargs=kwargs, trust_remote_code=False), model_id)
