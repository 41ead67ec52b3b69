"""Toxicity by the detoxify library."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import ClassVar
from urllib.error import URLError

import torch
from detoxify.detoxify import MODEL_URLS, Detoxify, get_model_and_tokenizer

from astra_trl.backends.hf.loading import place
from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, max_input_length, read_part, score_distinct, validate_part

# Categories that have other names in some checkpoints; the library has the same table.
RENAMED = {"toxic": "toxicity", "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


class DetoxifyScorer:
    """Probability in [0, 1] that a text is toxic, by one of detoxify's classifiers.

    Their checkpoints are pickles. Without `checkpoint` the library downloads one from its releases on GitHub and
    unpickles it whatever it contains. A local file is refused if it contains anything but tensors and settings.

    Args:
        category (`str`, *optional*, defaults to `"toxicity"`):
            Any category of the variant (`"insult"`, `"threat"`, ...).
        variant (`str`, *optional*, defaults to `"original"`):
            `"original"`, `"unbiased"`, `"multilingual"`, `"original-small"` or `"unbiased-small"`.
        checkpoint (`str` or `Path`, *optional*):
            A local checkpoint file instead of the download.
        huggingface_config_path (`str` or `Path`, *optional*):
            A local folder with the classifier's config and tokenizer, for use without the Hub.
        of (`str`, *optional*, defaults to `"response"`):
            The part that is read: `"response"`, `"probe"` or `"probe_and_response"`.
        device (`str`, *optional*):
            Defaults to accelerate's device for this process.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts per forward pass.
    """

    argument_of_name: ClassVar[str] = "variant"

    def __init__(
        self,
        category: str = "toxicity",
        variant: str = "original",
        *,
        checkpoint: str | Path | None = None,
        huggingface_config_path: str | Path | None = None,
        of: Part = "response",
        device: str | torch.device | None = None,
        batch_size: int = 64,
    ) -> None:
        if variant not in MODEL_URLS:
            raise InputError(f"detoxify has no variant {variant!r}: choose one of {', '.join(MODEL_URLS)}")
        source = str(checkpoint) if checkpoint is not None else MODEL_URLS[variant]
        config_path = None if huggingface_config_path is None else str(huggingface_config_path)
        try:
            if checkpoint is None:
                self._detoxify = Detoxify(variant, device=place(device), huggingface_config_path=config_path)
            else:
                self._detoxify = _LocalDetoxify(source, place(device), config_path)
        except UnpicklingError as error:
            raise InputError(
                f"detoxify's checkpoint {source!r} is damaged, or holds more than tensors and settings, which "
                "could run code: download it again from detoxify's releases"
            ) from error
        except (OSError, URLError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"detoxify could not load {source} ({reason}): download that file on a machine with a network and "
                "pass it as checkpoint=, and its config and tokenizer folder as huggingface_config_path="
            ) from error
        if category not in self._detoxify.class_names:
            names = ", ".join(self._detoxify.class_names)
            raise InputError(f"detoxify's variant {variant!r} has no category {category!r}: choose one of {names}")
        tokenizer = self._detoxify.tokenizer  # without a limit it would not truncate texts that are too long
        tokenizer.model_max_length = max_input_length(tokenizer, self._detoxify.model.config)
        self.category = category
        self.of = validate_part(of)
        self.batch_size = batch_size

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        texts = [read_part(exchange, self.of) for exchange in exchanges]
        return score_distinct(texts, self._score_batch, self.batch_size)

    def _score_batch(self, texts: list[str]) -> list[float]:
        with torch.inference_mode():
            scores = self._detoxify.predict(texts)[self.category]
        return scores if isinstance(scores, list) else [scores]  # detoxify squeezes a batch of one to a number


class _LocalDetoxify(Detoxify):
    # detoxify itself would unpickle whatever the file contains.
    def __init__(self, checkpoint: str, device: torch.device, config_path: str | None) -> None:
        content = torch.load(checkpoint, map_location=device, weights_only=True)
        try:
            state, arguments = content["state_dict"], content["config"]["arch"]["args"]
            classes = content["config"]["dataset"]["args"]["classes"]
            model, self.tokenizer = get_model_and_tokenizer(
                **arguments, state_dict=state, huggingface_config_path=config_path
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is not a checkpoint of detoxify: {error!r}") from error
        self.class_names = [RENAMED.get(name, name) for name in classes]
        self.model, self.device = model.to(device), device
