"""A backend on any decoder-only transformers model."""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from astra_trl.backends.base import Message, Sample, SamplingParams, SavedRow
from astra_trl.backends.hf.cache import Budget, CacheSpec, KeyValues, can_branch, can_pad
from astra_trl.backends.hf.dialogue import ChatTemplate, PlainText, encode_all, row_from_json
from astra_trl.backends.hf.loading import adapter_base, load_adapter, load_pretrained
from astra_trl.backends.hf.session import HFSession
from astra_trl.errors import InputError

UNTRAINED = "ref"  # name of the copy of an adapter as it was before training, by which TRL looks for its reference


@dataclass(eq=False)
class HFBackend:
    """Samples and scores with a transformers causal language model, many conversations at a time.

    A conversation is fed as its utterances, each tokenised alone and followed by the separator, or as the turns of
    the model's chat template. A row that would leave less than `max_new_tokens` of the model's window free keeps its
    newest tokens (and the leading BOS, where there is one).

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model; may be swapped while no session is open.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; a pad token is not needed.
        sampling (`SamplingParams`, *optional*):
            How utterances are sampled.
        separator (`str`, *optional*, defaults to `"\\n"`):
            Text between two utterances; in a chat, between two that share a turn.
        max_length (`int`, *optional*):
            Longest input plus output in tokens; defaults to the model's own window.
        max_rows (`int`, *optional*, defaults to `128`):
            Rows that pass through the model at a time.
        cache_bytes (`int`, *optional*):
            Memory for keys and values. Defaults to 35% of what is free on a GPU when conversations are opened (tester
            and target each hold their own), and to no bound but `max_rows` on a CPU.
        use_adapter (`bool` or `str`, *optional*, defaults to `True`):
            `False` switches the adapter of a `PeftModel` off: the base model. A name switches to that adapter.
        untempered (`bool`, *optional*, defaults to `False`):
            Whether samples tell their log-probabilities at temperature 1 too, which a reward may ask for.
        chat (`bool`, *optional*, defaults to `False`):
            Whether conversations go through the tokenizer's chat template: what this model says as the assistant's
            turns, all else as the user's.
        system_prompt (`str`, *optional*):
            The chat's first message.
        chat_template_kwargs (`dict`, *optional*):
            For the chat template, as `{"enable_thinking": False}`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingParams = field(default_factory=SamplingParams)
    separator: str = "\n"
    max_length: int | None = None
    max_rows: int = 128
    cache_bytes: int | None = None
    use_adapter: bool | str = True
    untempered: bool = False
    chat: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    gives_logprobs: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.dialogue: PlainText | ChatTemplate
        if self.chat:
            self.dialogue = ChatTemplate(self.tokenizer, self.separator, self.system_prompt, self.chat_template_kwargs)
        elif self.system_prompt is not None:
            raise InputError("system_prompt is for chat models: pass chat=True too")
        else:
            self.dialogue = PlainText(self.tokenizer, self.separator)
        native = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.window: int | None = min((n for n in (native, self.max_length) if n is not None), default=None)
        if self.window is not None and self.window <= self.sampling.max_new_tokens + len(self.dialogue.head):
            raise InputError(
                f"max_new_tokens={self.sampling.max_new_tokens} leaves no room for a context in a window of "
                f"{self.window} tokens: lower max_new_tokens or raise max_length"
            )
        eos = self.model.generation_config.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        self.eos = {i for i in (*eos, self.tokenizer.eos_token_id) if i is not None}
        if not all(isinstance(i, int) for i in self.eos):
            raise InputError(f"eos_token_id={eos!r} of the model is no token id: mend its generation_config.json")
        self._eos_ids = torch.tensor(sorted(self.eos), dtype=torch.long)
        self._stop_strings: StopStringCriteria | None = None
        if self.sampling.stop_strings:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(self.sampling.stop_strings))
        self.budget = Budget(self.cache_bytes)
        self._bytes_per_token = 0

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
        """Loads a model and its tokenizer from a Hub id or a folder.

        `dtype` defaults to float32, as in TRL; `device` to the one accelerate gives this process. Weights that are a
        pickle are refused unless `model_init_kwargs` has `allow_pickle=True`, and so is a model's own code unless it
        has `trust_remote_code=True`. An adapter is loaded on top of its base, as a `PeftModel`, and can be trained
        further if the role is the tester's. Raises `InputError` with `role` in its message if the model cannot be
        loaded.
        """
        init_kwargs = {"dtype": "float32", **(model_init_kwargs or {})}
        revision = init_kwargs.get("revision")
        base = adapter_base(model_id, role, revision)
        if base is None:
            model, tokenizer = load_pretrained(AutoModelForCausalLM, model_id, role, device, init_kwargs, tokenizer)
            return cls(model, tokenizer, **fields)
        of_base = {key: value for key, value in init_kwargs.items() if key != "revision"}  # that is the adapter's
        model, tokenizer = load_pretrained(AutoModelForCausalLM, base, f"{role}'s base", device, of_base, tokenizer)
        allow_pickle, trainable = bool(init_kwargs.get("allow_pickle")), role == "tester"
        model = load_adapter(model, model_id, role, allow_pickle, trainable=trainable, revision=revision)
        return cls(model.eval(), tokenizer, **fields)

    @staticmethod
    def saved_tokenizer(model: PreTrainedModel, role: str) -> PreTrainedTokenizerBase:
        """The tokenizer saved where a loaded model came from."""
        try:
            return AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the {role} is a loaded model and no tokenizer was saved with it: pass HFBackend(model, tokenizer)"
            ) from error

    @property
    def description(self) -> dict[str, Any]:
        """What tells this model from others, as JSON: its Hub id or the end of its path, a digest of its weights, how
        it samples."""
        # Of adapters that are switched off, nothing; what they may train tells nothing, as peft turns that on and off.
        prefix = getattr(getattr(self.model, "base_model", None), "prefix", "prompt_encoder")
        off = [name for name in getattr(self.model, "peft_config", ()) if name != self._adapter]
        weights = [
            (name, weight)
            for name, weight in self.model.named_parameters()
            if not any(f".{adapter}." in name for adapter in off)
            or not (prefix in name or ".modules_to_save." in name)
        ]
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in weights:
            # Enough of each tensor to see that it was trained.
            some = parameter.detach().flatten()[:: max(1, parameter.numel() // 256)]
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(some.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        chat = {"system_prompt": self.system_prompt, "template": self.chat_template_kwargs} if self.chat else None
        return {
            "backend": "HFBackend",
            "model": _name(self.model.config.name_or_path),
            "weights": digest.hexdigest(),
            "parameters": sum(parameter.numel() for _, parameter in weights),
            "window": self.window,
            "chat": chat,
            "sampling": asdict(self.sampling),
        }

    def before_training(self) -> "HFBackend | None":
        """The same with the weights that training started from: its adapter switched off or, if training goes on with
        an adapter that was there before, the copy of it; `None` if there is no adapter."""
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

    def fit(self, ids: list[int]) -> list[int]:
        """The ids, or their newest ones (and the head) where they leave less than an utterance of the window free."""
        if self.window is None or len(ids) <= self.window - self.sampling.max_new_tokens:
            return ids
        head = self.dialogue.head
        return head + ids[len(ids) - (self.window - self.sampling.max_new_tokens - len(head)) :]

    def without_end(self, ids: list[int]) -> list[int]:
        """A sampled utterance without the token that ended it, where one did."""
        return ids[:-1] if ids and ids[-1] in self.eos else ids

    def texts(self, utterances: Sequence[list[int]]) -> list[str]:
        """What the other side is to see of sampled utterances: no end of sequence, nor what a chat model thought."""
        said = self.decoded([self.without_end(ids) for ids in utterances])
        return [self.dialogue.shown(text) for text in said]

    def cut(self, sample: Sample, text: str) -> Sample:
        """The sample through the token with which its text reaches `text`, which is a beginning of it."""
        shown = self.texts([sample.ids[:count] for count in range(1, len(sample.ids) + 1)])
        count = next((n for n, beginning in enumerate(shown, 1) if beginning.startswith(text)), len(shown))
        logprobs, untempered = sample.logprobs[:count], sample.untempered_logprobs[:count]
        return replace(sample, text=text, ids=sample.ids[:count], logprobs=logprobs, untempered_logprobs=untempered)

    def decoded(self, utterances: Sequence[list[int]]) -> list[str]:
        """Token ids as text, without special tokens."""
        return self.tokenizer.batch_decode(utterances, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def utterance_ids(self, text: str) -> list[int]:
        """Token ids of an utterance as this model could have sampled it: cut at `max_new_tokens`, or with an end."""
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return [*encode_all(self.tokenizer, [text])[0], *end][: self.sampling.max_new_tokens]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode of every module is as it was found afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self._with_adapter(), torch.inference_mode():
                yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def _with_adapter(self) -> Iterator[None]:
        if not isinstance(self.use_adapter, str):
            switch_off = not self.use_adapter and hasattr(self.model, "disable_adapter")
            with self.model.disable_adapter() if switch_off else nullcontext():
                yield
            return
        # peft makes the adapter that it switches to trainable, and the others not.
        trainable = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        active = self.model.active_adapter
        self.model.set_adapter(self.use_adapter)
        try:
            yield
        finally:
            self.model.set_adapter(active)
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)

    def ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Which rows (of new ids, shape (rows, tokens)) end with their last token."""
        ended = torch.isin(ids[:, -1], self._eos_ids.to(ids.device))
        if self._stop_strings is not None:
            ended = ended | self._stop_strings(ids, None)
        return ended

    def left_padded(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input ids and attention mask, both of shape (rows, longest row)."""
        width = max(len(row) for row in rows)
        ids = [[row[0]] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def attention_mask(self, mask: torch.Tensor, width: int) -> torch.Tensor:
        """What forward takes for the mask (rows, columns) of a cache whose last `width` columns are being fed.

        For SDPA it is the finished 4-D mask: making it of the 2-D one, transformers asks a GPU at every step whether
        anything is masked at all. Flash and eager attention make of the 2-D one what they need.
        """
        if self.model.config._attn_implementation != "sdpa":
            return mask
        columns = mask.shape[1]
        causal = torch.ones((width, columns), dtype=torch.bool, device=mask.device).tril_(columns - width)
        return mask.bool()[:, None, None, :] & causal

    def forward(self, **inputs: Any) -> Any:
        """The model's output; inputs that its forward does not know are left out."""
        return self.model(**{name: value for name, value in inputs.items() if name in self._accepted})

    # -- models whose cache cannot be branched

    def greedy_config(self) -> GenerationConfig:
        """For `generate` with a logits processor that leaves one token; everything is named, as what is left out is
        taken from the model's own generation config."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.sampling.max_new_tokens,
            min_new_tokens=0,
            repetition_penalty=1.0,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self.eos) or None,
            pad_token_id=min(self.eos, default=0),
        )

    def batches(self, rows: Sequence[list[int]]) -> list[list[int]]:
        """Row numbers that may be fed together: all of them, or those of one length where padding leaves a trace."""
        if can_pad(self.model.config) and not self._virtual_tokens:
            return [list(range(len(rows)))]
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(number)
        return list(by_length.values())

    # -- what the model is, found once

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def branches(self) -> bool:
        """Whether the past of a row can be copied to its children."""
        needed = {"attention_mask", "position_ids", "past_key_values"}
        return needed <= self._accepted and can_branch(self.model.config) and not self._virtual_tokens

    @property
    def cache_spec(self) -> CacheSpec:
        """What a cache of this model is made of; bytes are counted only where a budget bounds them."""
        layers = len(DynamicCache(config=self.model.config).layers)
        spec = CacheSpec(self.device, layers, self._bytes_per_token, self.budget)
        if self.budget.limit is None or self._bytes_per_token:
            return spec
        unbounded = KeyValues(replace(spec, budget=Budget()), 1, 1)
        with self.inference():
            self.forward(
                input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device),
                attention_mask=torch.ones((1, 1), dtype=torch.long, device=self.device),
                position_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device),
                past_key_values=unbounded.at(slice(0, 1), 0),
                use_cache=True,
            )
        self._bytes_per_token = unbounded.nbytes
        return replace(spec, bytes_per_token=self._bytes_per_token)

    @property
    def _virtual_tokens(self) -> bool:
        # Those of prompt tuning go in front of a row's padding, and take no position ids.
        adapter = self._adapter
        return adapter is not None and self.model.peft_config[adapter].is_prompt_learning

    @property
    def _adapter(self) -> str | None:
        # The name of the adapter that is in use.
        if isinstance(self.use_adapter, str):
            return self.use_adapter
        return self.model.active_adapter if self.use_adapter and is_peft_model(self.model) else None

    def _set_budget(self) -> None:
        if self.cache_bytes is not None:
            self.budget.limit = self.cache_bytes
        elif self.device.type == "cuda":
            # Tester and target hold theirs side by side; the rest is for logits and activations.
            free, _ = torch.cuda.mem_get_info(self.device)
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            self.budget.limit = self.budget.held + int(0.35 * (free + unused))

    @property
    def _accepted(self) -> frozenset[str]:
        # The forward of a PeftModel takes anything; that of the model inside says what it knows.
        return _inputs(type(base_of(self.model)).forward)


def base_of(model: Any) -> Any:
    """The model inside a `PeftModel`, into which peft has put the adapters; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@lru_cache
def _inputs(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _name(name_or_path: str) -> str:
    # Others may read it: where a folder lies on this machine, and whose it is, is not for them.
    return "/".join(Path(name_or_path).parts[-2:]) if os.path.isdir(name_or_path) else name_or_path
