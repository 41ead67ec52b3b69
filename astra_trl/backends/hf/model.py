"""A transformers model as sessions run it: forward passes, masks, window, end of utterances, memory budget."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from astra_trl.backends.base import SamplingParams
from astra_trl.backends.hf.cache import CacheSpec, KeyValues, can_branch, can_pad
from astra_trl.backends.hf.dialogue import ChatTemplate, PlainText
from astra_trl.backends.hf.masks import attention_windows, complete_mask, takes_complete_masks
from astra_trl.backends.hf.memory import CACHE_SHARE, Budget, available_bytes
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers

LAUNCH_BYTES = {"cpu": 2**20}  # read in the 0.1 ms that it takes to start the work of a layer; on a GPU 2**27


@dataclass(eq=False)
class HFModel:
    """The part of an [`HFBackend`] that its sessions use; the fields are documented there."""

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
        require_numbers(max_length=self.max_length, max_rows=self.max_rows, cache_bytes=self.cache_bytes)
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
            limit = "raise max_length" if self.window == self.max_length else "name a model with a larger window"
            raise InputError(
                f"max_new_tokens={self.sampling.max_new_tokens} leaves {self._name} no room for a context in a window "
                f"of {self.window} tokens: lower max_new_tokens or {limit}"
            )
        eos = self.model.generation_config.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        self.eos = {i for i in (*eos, self.tokenizer.eos_token_id) if i is not None}
        if not all(isinstance(i, int) and 0 <= i < self.vocabulary for i in self.eos):
            raise InputError(
                f"eos_token_id={eos!r} of {self._name} is not a token id below {self.vocabulary}: fix its "
                "generation_config.json"
            )
        self._eos_ids = torch.tensor(sorted(self.eos), dtype=torch.long)
        self._stop_strings: StopStringCriteria | None = None
        if self.sampling.stop_strings:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(self.sampling.stop_strings))
        self._masked: tuple[Any, str | None, frozenset[int | None]] = (None, None, frozenset())
        self.budget = Budget(self.cache_bytes)
        self._bytes_per_token = 0

    @property
    def _name(self) -> str:
        return repr(getattr(self.model.config, "name_or_path", None) or type(self.model).__name__)

    # -- token ids and text

    def fit(self, ids: list[int]) -> list[int]:
        """Return the ids, or only their newest (and the head) if they leave no room for an utterance in the window."""
        if self.window is None or len(ids) <= self.window - self.sampling.max_new_tokens:
            return ids
        head = self.dialogue.head
        return head + ids[len(ids) - (self.window - self.sampling.max_new_tokens - len(head)) :]

    def without_end(self, ids: list[int]) -> list[int]:
        """Return a sampled utterance without its end-of-sequence token, if it has one."""
        return ids[:-1] if ids and ids[-1] in self.eos else ids

    def decode(self, utterances: Sequence[list[int]]) -> list[str]:
        """Return token ids as text, without special tokens."""
        return self.tokenizer.batch_decode(utterances, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def texts(self, utterances: Sequence[list[int]]) -> list[str]:
        """Return sampled utterances as the other side sees them: no end of sequence, no thoughts of a chat model."""
        texts = self.decode([self.without_end(ids) for ids in utterances])
        return [self.dialogue.visible_part(text) for text in texts]

    def ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows (of new ids, shape (rows, tokens)) that end with their last token, as a mask (rows,)."""
        is_end = torch.isin(ids[:, -1], self._eos_ids.to(ids.device))
        return is_end if self._stop_strings is None else is_end | self._stop_strings(ids, None)

    def unfinished(self, utterances: Sequence[list[int]]) -> list[bool]:
        """Return `True` for each sampled utterance that `max_new_tokens` has cut, i.e. without an end of sequence or a
        stop string at its end."""
        longest = [ids for ids in utterances if len(ids) == self.sampling.max_new_tokens]
        ends = iter(self.ends(torch.tensor(longest, device=self.device)).tolist() if longest else ())
        return [len(ids) == self.sampling.max_new_tokens and not next(ends) for ids in utterances]

    # -- running the model

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients. Afterwards every module is in its earlier mode."""
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
        # peft makes the adapter that it switches to trainable, and freezes all other adapters.
        trainable = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        active = self.model.active_adapter
        self.model.set_adapter(self.use_adapter)
        try:
            yield
        finally:
            self.model.set_adapter(active)
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)

    def left_padded(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input ids and attention mask, both of shape (rows, longest row)."""
        width = max(len(row) for row in rows)
        ids = [[row[0]] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def attention_mask(self, mask: torch.Tensor, width: int) -> Any:
        """Return the argument of forward for the mask (rows, columns) of a cache whose last `width` columns are fed.

        For SDPA it is the complete 4-D mask: to make that from the 2-D one, transformers asks a GPU at every step if
        anything is masked at all. Flash attention needs the 2-D mask, and eager attention gets it too unless the model
        has a sliding window, because the columns of a row are not its positions.
        """
        is_sdpa = self.model.config._attn_implementation == "sdpa"
        windows = self._windows
        smallest = min((window for window in windows if window is not None), default=None)
        if not is_sdpa and smallest is None:
            return mask
        columns = mask.shape[1]
        causal = torch.ones((width, columns), dtype=torch.bool, device=mask.device).tril_(columns - width)
        if is_sdpa and (smallest is None or columns <= smallest):
            return mask.bool()[:, None, None, :] & causal
        positions = mask.cumsum(-1)
        allowed = mask.bool()[:, None, :] & causal
        return complete_mask(self.model.config, allowed, positions[:, -width:], positions, self.model.dtype, windows)

    def forward(self, **inputs: Any) -> Any:
        """Return the model's output. Inputs that its forward does not know are left out."""
        return self.model(**{name: value for name, value in inputs.items() if name in self._accepted})

    def greedy_config(self) -> GenerationConfig:
        """Return the config of `generate` with a logits processor that leaves one token.

        All fields are set, because `generate` takes missing ones from the model's own generation config.
        """
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

    # -- properties of the model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def branches(self) -> bool:
        """`True` if the past of a row can be copied to its children."""
        needed = {"attention_mask", "position_ids", "past_key_values"}
        # The code of a model's own folder may make the mask of its sliding window by itself, from columns.
        known = not (self._windows - {None}) or type(base_of(self.model)).__module__.startswith("transformers.")
        return known and needed <= self._accepted and can_branch(self.model.config) and not self._virtual_tokens

    @property
    def pads(self) -> bool:
        """`True` if rows of different lengths can be fed together, padded on the left."""
        return can_pad(self.model.config) and not self._virtual_tokens

    @property
    def cache_spec(self) -> CacheSpec:
        """Properties of a cache of this model."""
        layers = len(DynamicCache(config=self.model.config).layers)
        spec = CacheSpec(self.device, layers, self._bytes_per_token, self.budget)
        if self._bytes_per_token:
            return spec
        unlimited = KeyValues(replace(spec, budget=Budget()), 1, 1)
        with self.inference():
            self.forward(
                input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device),
                attention_mask=self.attention_mask(torch.ones((1, 1), dtype=torch.long, device=self.device), 1),
                position_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device),
                past_key_values=unlimited.at(slice(0, 1), 0),
                use_cache=True,
            )
        self._bytes_per_token = unlimited.nbytes
        return replace(spec, bytes_per_token=self._bytes_per_token)

    @property
    def pass_bytes(self) -> int:
        """Bytes that could be read in the time of a forward pass without any row: those of the weights, and more for
        the time that it takes to start the work of each layer."""
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        return weights + self.cache_spec.layers * LAUNCH_BYTES.get(self.device.type, 2**27)

    @property
    def _windows(self) -> frozenset[int | None]:
        # Empty if the model takes no complete masks. A decoding step has no time to find out.
        config, implementation, windows = self._masked
        if config is not self.model.config or implementation != config._attn_implementation:
            config = self.model.config
            windows = attention_windows(config) if takes_complete_masks(config) else frozenset()
            self._masked = (config, config._attn_implementation, windows)
        return windows

    @property
    def adapter(self) -> str | None:
        """Name of the adapter in use."""
        if isinstance(self.use_adapter, str):
            return self.use_adapter
        return self.model.active_adapter if self.use_adapter and is_peft_model(self.model) else None

    @property
    def _virtual_tokens(self) -> bool:
        # Prompt tuning puts its tokens before the padding of a row, and they take no position ids.
        return self.adapter is not None and self.model.peft_config[self.adapter].is_prompt_learning

    @property
    def _accepted(self) -> frozenset[str]:
        # The forward of a PeftModel accepts anything, so that of the model inside decides.
        return _parameters(type(base_of(self.model)).forward)

    def _set_budget(self) -> None:
        self.budget.limit = self.cache_bytes
        if self.cache_bytes is None and (available := available_bytes(self.device)) is not None:
            self.budget.limit = self.budget.in_use + int(CACHE_SHARE * available)


def base_of(model: Any) -> Any:
    """Return the model inside a `PeftModel`, which holds the adapters too; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@lru_cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
