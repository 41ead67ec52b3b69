"""A backend on any decoder-only transformers model."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from astra_trl.backends.base import (
    CHAT_PROBE_TOKENS,
    CHAT_RESPONSE_TOKENS,
    Message,
    Sample,
    SamplingParams,
    SavedRow,
)
from astra_trl.backends.hf.checks import check_model
from astra_trl.backends.hf.dialogue import encode_all, row_from_json
from astra_trl.backends.hf.loading import adapter_base, load_adapter, load_pretrained
from astra_trl.backends.hf.model import HFModel
from astra_trl.backends.hf.session import HFSession
from astra_trl.errors import InputError

UNTRAINED = "ref"  # name of the copy of an adapter as it was before training; TRL looks for its reference by this name


@dataclass(eq=False)
class HFBackend(HFModel):
    """Samples and scores with a transformers causal language model, many conversations at a time.

    A conversation is fed as its utterances, each tokenised alone and followed by the separator, or as the turns of
    the model's chat template. A row that would leave less than `max_new_tokens` of the model's window free keeps its
    newest tokens (and the leading BOS, if it has one).

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model; can be replaced while no session is open.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; a pad token is not needed.
        sampling (`SamplingParams`, *optional*):
            Sampling of utterances.
        separator (`str`, *optional*, defaults to `"\\n"`):
            Text between two utterances; in a chat, between two that share a turn.
        max_length (`int`, *optional*):
            Longest input plus output in tokens; defaults to the model's own window.
        max_rows (`int`, *optional*, defaults to `128`):
            Rows that pass through the model at a time.
        cache_bytes (`int`, *optional*):
            Memory for keys and values. It defaults to 30% of the memory that is free when conversations are opened
            (tester, target and a third model have a cache each): the GPU's, or for a CPU the machine's or what the
            limits of containers (cgroups) leave, divided by the number of the machine's processes. Otherwise only
            `max_rows` limits it.
        use_adapter (`bool` or `str`, *optional*, defaults to `True`):
            `False` switches the adapter of a `PeftModel` off: the base model. A name switches to that adapter.
        untempered (`bool`, *optional*, defaults to `False`):
            Whether samples have log-probabilities at temperature 1 too, which some reward terms need.
        chat (`bool`, *optional*, defaults to `False`):
            Whether conversations go through the tokenizer's chat template: utterances of this model as the
            assistant's turns, all others as the user's.
        system_prompt (`str`, *optional*):
            The first message of the chat.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, e.g. `{"enable_thinking": False}`.
    """

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        *,
        role: str = "model",
        device: str | torch.device | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        **fields: Any,
    ) -> "HFBackend":
        """Load a model and its tokenizer from a Hub id or a folder.

        `dtype` defaults to float32, as in TRL; `device` to the one that accelerate gives this process. Weights in a
        pickle are refused unless `model_init_kwargs` has `allow_pickle=True`, and the model's own code unless it has
        `trust_remote_code=True`. An adapter is loaded on top of its base as a `PeftModel`; that of the tester can be
        trained further. With `chat=True` and without `sampling`, utterances have up to 64 tokens (a tester's or
        baseline's) or 128.

        Raises:
            InputError: the model cannot be loaded; the message names `role`.
        """
        if fields.get("chat") and "sampling" not in fields:
            longest = CHAT_PROBE_TOKENS if role in ("tester", "baseline") else CHAT_RESPONSE_TOKENS
            fields["sampling"] = SamplingParams(max_new_tokens=longest)
        init_kwargs = {"dtype": "float32", **(model_init_kwargs or {})}
        revision = init_kwargs.get("revision")
        base = adapter_base(model_id, role, revision)
        if base is None:
            model, tokenizer = load_pretrained(AutoModelForCausalLM, model_id, role, device, init_kwargs, tokenizer)
        else:
            of_base = {key: value for key, value in init_kwargs.items() if key != "revision"}  # that is the adapter's
            whose = f"{role}'s base"
            model, tokenizer = load_pretrained(AutoModelForCausalLM, base, whose, device, of_base, tokenizer)
            allow_pickle, trainable = bool(init_kwargs.get("allow_pickle")), role == "tester"
            model = load_adapter(model, model_id, role, allow_pickle, trainable=trainable, revision=revision).eval()
        backend = cls(model, tokenizer, **fields)
        check_model(backend, f"{role} {model_id!r}")
        return backend

    @staticmethod
    def saved_tokenizer(model: PreTrainedModel, role: str) -> PreTrainedTokenizerBase:
        """Load the tokenizer from the place that a model was loaded from."""
        try:
            return AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the {role} is a loaded model and no tokenizer was saved with it: pass HFBackend(model, tokenizer)"
            ) from error

    @property
    def description(self) -> dict[str, Any]:
        """JSON that identifies the model: its Hub id or the end of its path, a digest of its weights, its sampling."""
        # Adapters that are not in use do not count. `requires_grad` says nothing, because peft switches it.
        prefix = getattr(getattr(self.model, "base_model", None), "prefix", "prompt_encoder")
        unused = [name for name in getattr(self.model, "peft_config", ()) if name != self.adapter]
        weights = [
            (name, weight)
            for name, weight in self.model.named_parameters()
            if not any(f".{adapter}." in name for adapter in unused)
            or not (prefix in name or ".modules_to_save." in name)
        ]
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in weights:
            # Enough of each tensor to notice that it was trained.
            some = parameter.detach().flatten()[:: max(1, parameter.numel() // 256)]
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(some.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        chat = {"system_prompt": self.system_prompt, "template": self.chat_template_kwargs} if self.chat else None
        return {
            "backend": "HFBackend",
            "model": _public_name(self.model.config.name_or_path),
            "weights": digest.hexdigest(),
            "parameters": sum(parameter.numel() for _, parameter in weights),
            "window": self.window,
            "chat": chat,
            "sampling": asdict(self.sampling),
        }

    def before_training(self) -> "HFBackend | None":
        """Return this backend with the weights from before training; `None` if the model has no adapter.

        The adapter is switched off, or replaced by its untrained copy if training continues an earlier adapter.
        """
        if not is_peft_model(self.model):
            return None
        return replace(self, use_adapter=UNTRAINED if UNTRAINED in self.model.peft_config else False)

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> HFSession:
        self._set_budget()
        return HFSession(self, self.dialogue.open(prompts), list(seeds), logprobs)

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> HFSession:
        self._set_budget()
        states = [row.state for row in rows]
        return HFSession(self, [row_from_json(state) for state in states], [s["key"] for s in states], logprobs)

    def cut(self, sample: Sample, text: str) -> Sample:
        """Cut the sample after the token that completes `text`, a prefix of its text."""
        prefixes = self.texts([sample.ids[:count] for count in range(1, len(sample.ids) + 1)])
        count = next((n for n, prefix in enumerate(prefixes, 1) if prefix.startswith(text)), len(prefixes))
        logprobs, untempered = sample.logprobs[:count], sample.untempered_logprobs[:count]
        return replace(
            sample,
            text=text,
            ids=sample.ids[:count],
            logprobs=logprobs,
            untempered_logprobs=untempered,
            cut=sample.cut and count == len(sample.ids),
        )

    def utterance_ids(self, text: str, ended: bool = True) -> list[int]:
        """Return the ids of an utterance as the model could sample it: cut at `max_new_tokens`, or with an end. One
        that has not `ended`, or that a stop string ends, has no end."""
        ids = encode_all(self.tokenizer, [text])[0]
        if ended and ids and self.ends(torch.tensor([ids], device=self.device))[0]:
            ended = False
        end = [] if self.tokenizer.eos_token_id is None or not ended else [self.tokenizer.eos_token_id]
        return [*ids, *end][: self.sampling.max_new_tokens]


def _public_name(name_or_path: str) -> str:
    # Reports show it, and the path of a folder on this machine is private.
    return "/".join(Path(name_or_path).parts[-2:]) if os.path.isdir(name_or_path) else name_or_path
