"""Harm by any transformers sequence classifier."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification

from astra_trl.backends.hf.loading import load_pretrained
from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, max_input_length, read_part, score_distinct, validate_part

Activation = Literal["sigmoid", "softmax"]


class ClassifierScorer:
    """Probability in [0, 1] of a label, or of any of several, by a sequence classifier of the Hub.

    The probability of several labels is their sum under softmax, as they exclude each other, and the largest under
    sigmoid.

    Args:
        model (`str`):
            Hub id or folder, e.g. `"facebook/roberta-hate-speech-dynabench-r4-target"` or `"unitary/toxic-bert"`.
        labels (`str`, `int` or a sequence of them):
            Label or labels that mean harm: names in the model's config, or indices.
        activation (`str`, *optional*):
            `"sigmoid"` or `"softmax"`. By default it follows from the config's `problem_type` and number of labels,
            as in transformers' pipeline.
        of (`str`, *optional*, defaults to `"response"`):
            The part that is read: `"response"`, `"probe"` or `"probe_and_response"`.
        device (`str`, *optional*):
            Defaults to accelerate's device for this process.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts per forward pass.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained`: `dtype`, `quantization_config`, `revision`, ...
    """

    def __init__(
        self,
        model: str,
        labels: str | int | Sequence[str | int],
        *,
        activation: Activation | None = None,
        of: Part = "response",
        device: str | torch.device | None = None,
        batch_size: int = 64,
        model_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer = load_pretrained(
            AutoModelForSequenceClassification, model, "classifier", device, model_init_kwargs or {}
        )
        self.model.eval()
        config = self.model.config
        self.labels = _find_labels(config, labels, model)
        self.activation = activation or _default_activation(config, model)
        if self.activation not in ("sigmoid", "softmax"):
            raise InputError(f"activation={activation!r}: choose sigmoid or softmax")
        self.of = validate_part(of)
        self.batch_size = batch_size
        self._max_length = max_input_length(self.tokenizer, config)
        # Decoders have no pad token, and find a text's last token by it.
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        texts = [read_part(exchange, self.of) for exchange in exchanges]
        return score_distinct(texts, self._score_batch, self.batch_size)

    @torch.inference_mode()
    def _score_batch(self, texts: list[str]) -> list[float]:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits.float()
        if self.activation == "softmax":
            scores = logits.softmax(-1)[:, self.labels].sum(-1).clamp(max=1.0)
        else:
            scores = logits.sigmoid()[:, self.labels].amax(-1)
        return scores.tolist()


def _find_labels(config: Any, labels: str | int | Sequence[str | int], model: str) -> list[int]:
    names = {name: index for index, name in config.id2label.items()}
    wanted = [labels] if isinstance(labels, str | int) else list(labels)
    indices = [names.get(label, label) for label in wanted]
    for index in indices:
        if index not in config.id2label:
            raise InputError(f"classifier {model!r} has no label {index!r}: choose among {', '.join(names)}")
    if not indices:
        raise InputError(f"no label of classifier {model!r} means harm: choose among {', '.join(names)}")
    return [int(index) for index in indices]


def _default_activation(config: Any, model: str) -> Activation:
    if config.problem_type == "regression":
        raise InputError(
            f"classifier {model!r} is a regression, whose output is not a probability: give it activation sigmoid if "
            "it is a logit"
        )
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"
