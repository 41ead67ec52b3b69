"""A backend on any decoder-only transformers model."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from astra_trl.backends.base import Logprobs, Sample, SamplingParams, derive_seed
from astra_trl.errors import InputError


@dataclass(eq=False)
class HFBackend:
    """Samples and scores with a transformers causal language model, many conversations at a time.

    A conversation is fed as its utterances, each tokenised alone and followed by the separator. A row that would
    outgrow the model's window keeps its newest tokens (and the leading BOS, where the tokenizer sets one).

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model; may be swapped while no session is open.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; a pad token is not needed.
        sampling (`SamplingParams`, *optional*):
            How utterances are sampled.
        separator (`str`, *optional*, defaults to `"\\n"`):
            Text between two utterances.
        max_length (`int`, *optional*):
            Longest input plus output in tokens; defaults to the model's own window.
        max_rows (`int`, *optional*, defaults to `128`):
            Rows that pass through the model at a time.
        use_adapter (`bool`, *optional*, defaults to `True`):
            `False` switches the adapter of a `PeftModel` off: the weights before training.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingParams = field(default_factory=SamplingParams)
    separator: str = "\n"
    max_length: int | None = None
    max_rows: int = 128
    use_adapter: bool = True
    gives_logprobs: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        # A decoder's tokenizer opens a text with BOS or with nothing; some add an EOS, which would end every context.
        self.bos = [i for i in self.tokenizer("")["input_ids"] if i == self.tokenizer.bos_token_id]
        self.separator_ids = self.encode(self.separator)
        native = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.window: int | None = min((n for n in (native, self.max_length) if n is not None), default=None)
        if self.window is not None and self.window <= self.sampling.max_new_tokens + len(self.bos):
            raise InputError(
                f"max_new_tokens={self.sampling.max_new_tokens} leaves no room for a context in a window of "
                f"{self.window} tokens: lower max_new_tokens or raise max_length"
            )
        eos = self.model.generation_config.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        self.eos = {i for i in (*eos, self.tokenizer.eos_token_id) if i is not None}

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

        `dtype` defaults to float32, as in TRL; `device` to the one accelerate gives this process. Raises
        `InputError` with `role` in its message where the model cannot be loaded.
        """
        init_kwargs = {"dtype": "float32", **(model_init_kwargs or {})}
        placed = PartialState().device if device is None else torch.device(device)
        if placed.type != "cpu":
            init_kwargs.setdefault("device_map", placed)
        try:
            model = AutoModelForCausalLM.from_pretrained(model_id, **init_kwargs)
            where = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model_id, **where)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"{role} {model_id!r} could not be loaded: name a Hub id or a folder with its tokenizer ({reason})"
            ) from error
        return cls(model, tokenizer, **fields)

    @staticmethod
    def saved_tokenizer(model: PreTrainedModel, role: str) -> PreTrainedTokenizerBase:
        """The tokenizer saved where a loaded model came from."""
        try:
            return AutoTokenizer.from_pretrained(model.config.name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the {role} is a loaded model and no tokenizer was saved with it: pass HFBackend(model, tokenizer)"
            ) from error

    def open(self, prompts: Sequence[str], *, seed: int, logprobs: bool = False) -> "HFSession":
        encoded = [self.bos + self.encode(prompt) + self.separator_ids for prompt in prompts]
        # A model cannot continue nothing.
        rows = [row or sorted(self.eos)[:1] or [0] for row in encoded]
        return HFSession(self, rows, seed, logprobs)

    def encode(self, text: str) -> list[int]:
        """Token ids of one utterance; what looks like a special token in it is ordinary text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def fit(self, row: list[int], room: int) -> list[int]:
        """The row, or its newest tokens if it leaves less than `room` of the window free."""
        space = len(row) if self.window is None else self.window - room
        return row if len(row) <= space else self.bos + row[len(row) - space + len(self.bos) :]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode of every module is as it was found afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        switchable = not self.use_adapter and hasattr(self.model, "disable_adapter")
        self.model.eval()
        try:
            with self.model.disable_adapter() if switchable else nullcontext(), torch.inference_mode():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def left_padded(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input ids and attention mask, both of shape (rows, longest row)."""
        width = max(len(row) for row in rows)
        # Each row is padded with a token of its own: the repetition penalty counts padding, and so penalises nothing
        # that the row would not have penalised alone.
        ids = [[row[0]] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def generate(self, rows: Sequence[list[int]]) -> list[list[int]]:
        """Sampled ids for every row, up to and including the first end-of-sequence token."""
        params = self.sampling
        greedy = params.temperature == 0
        # Everything is named: what is left out, `generate` takes from the model's own generation config.
        chosen = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        config = GenerationConfig(
            do_sample=not greedy,
            **({} if greedy else chosen),
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens,
            repetition_penalty=params.repetition_penalty,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self.eos) or None,
            pad_token_id=min(self.eos, default=0),
        )
        ids, mask = self.left_padded(rows)
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [self._until_eos(row) for row in output[:, ids.shape[1] :].tolist()]

    def logprobs(self, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[Logprobs]:
        """Natural log-probability of every continuation token after its context; of a continuation longer than the
        window, that of its newest tokens."""
        if self.window is not None:
            continuations = [ids[-(self.window - len(self.bos) - 1) :] for ids in continuations]
        kept = max(len(ids) for ids in continuations) + 1
        if kept == 1:
            return [[] for _ in continuations]
        rows = [self.fit(context, len(ids)) + ids for context, ids in zip(contexts, continuations, strict=True)]
        ids, mask = self.left_padded(rows)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        accepted = inspect.signature(self._base_model().forward).parameters
        if "position_ids" in accepted:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = kept
        logits = self.model(**inputs).logits[:, -kept:-1].float()
        targets = ids[:, -(kept - 1) :]
        # One vocabulary-sized tensor at a time: a row of Llama's is half a megabyte.
        logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return [row[len(row) - len(ids) :] for row, ids in zip(logprobs.tolist(), continuations, strict=True)]

    def _base_model(self) -> PreTrainedModel:
        # The forward of a PeftModel takes anything; that of the model inside says what it knows.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _until_eos(self, ids: list[int]) -> list[int]:
        return next((ids[: index + 1] for index, token in enumerate(ids) if token in self.eos), ids)


@dataclass
class HFSession:
    """The rows of an `HFBackend` as token ids; every call feeds a row whole, in one `generate` or forward a chunk."""

    backend: HFBackend
    rows: list[list[int]]
    seed: int
    with_logprobs: bool
    calls: int = 0

    def branch(self, width: int) -> None:
        self.rows = [row for row in self.rows for _ in range(width)]

    def sample(self) -> list[Sample]:
        backend = self.backend
        prompts = [backend.fit(row, backend.sampling.max_new_tokens) for row in self.rows]
        self.calls += 1
        sampled: list[list[int]] = []
        device = backend.model.device
        # transformers draws from the global generator: it is seeded inside and put back afterwards.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), backend.inference():
            torch.manual_seed(derive_seed(self.seed, self.calls))
            for chunk in self._chunks(prompts):
                sampled += backend.generate(chunk)
        texts = backend.tokenizer.batch_decode(sampled, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        said = [ids[:-1] if ids and ids[-1] in backend.eos else ids for ids in sampled]
        self.rows = [row + ids + backend.separator_ids for row, ids in zip(self.rows, said, strict=True)]
        return [Sample(*sample) for sample in zip(texts, prompts, sampled, strict=True)]

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        backend = self.backend
        added = [backend.encode(text) for text in texts]
        logprobs: list[Logprobs] | None = None
        if self.with_logprobs:
            with backend.inference():
                logprobs = []
                for rows, ids in zip(self._chunks(self.rows), self._chunks(added), strict=True):
                    logprobs += backend.logprobs(rows, ids)
        self.rows = [row + ids + backend.separator_ids for row, ids in zip(self.rows, added, strict=True)]
        return logprobs

    def _chunks(self, rows: list[list[int]]) -> list[list[list[int]]]:
        return [rows[start : start + self.backend.max_rows] for start in range(0, len(rows), self.backend.max_rows)]
