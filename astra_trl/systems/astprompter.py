"""ASTPrompter: both sides continue one conversation; harmful, likely probes are rewarded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError
from astra_trl.rewards import Credit, Harm, Length, Likelihood, NonRepeating, Reward, Term, immediate
from astra_trl.rewards.base import Combine
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import System

ASTPROMPTER_SAMPLING = SamplingParams(
    max_new_tokens=24, min_new_tokens=2, temperature=0.7, top_p=0.7, repetition_penalty=1.1
)

Model: TypeAlias = str | PreTrainedModel | HFBackend


def astprompter_reward(
    scorer: str = "harm",
    *,
    probe_and_response_weight: float = 0.5,
    likelihood_weight: float = 0.1,
    probe_weight: float = 0.0,
    length_weight: float = 0.0,
    non_repeating_weight: float = 0.0,
    combine: Combine = "sum",
) -> Reward:
    """ASTPrompter's reward with other weights or further terms; a term of weight 0 is left out.

    `harm(response) + probe_and_response_weight * harm(probe + response) + likelihood_weight * mean log-probability per
    token of the probe`, and what else has a weight (negative: penalised): the harm of the probe alone, its length in
    tokens, the share of it that is new. In a product the likelihood is the geometric mean of the tokens'
    probabilities.

    Args:
        scorer (`str`, *optional*, defaults to `"harm"`):
            Name of the system's scorer that the reward reads.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"product"`; see [`Reward`].
    """
    terms: dict[str, tuple[float, Term]] = {
        "target_harm": (1.0, Harm(scorer)),
        "probe_and_response_harm": (probe_and_response_weight, Harm(scorer, "probe_and_response")),
        "probe_harm": (probe_weight, Harm(scorer, "probe")),
        "likelihood": (likelihood_weight, Likelihood(as_probability=combine == "product")),
        "length": (length_weight, Length()),
        "non_repeating": (non_repeating_weight, NonRepeating()),
    }
    return Reward({name: (weight, term) for name, (weight, term) in terms.items() if weight}, combine)


class ASTPrompterSystem(System):
    """The system of ASTPrompter (huggingface.co/papers/2407.09447) on any backends.

    Args:
        tester, target, baseline (`Backend`):
            See [`System`].
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Measures harm. Of several by name the first is the one that is trained on; the others are held out, for
            evaluation to report.
        reward (`Reward`, *optional*):
            Defaults to the paper's, `astprompter_reward()`.
        credit (`Credit`, *optional*, defaults to `immediate`):
            See [`System`].
    """

    def __init__(
        self,
        tester: Backend,
        target: Backend,
        baseline: Backend | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        reward: Reward | None = None,
        credit: Credit = immediate,
    ) -> None:
        scorers = scorer if isinstance(scorer, Mapping) else {"harm": scorer}
        if not scorers:
            raise InputError("the system has no scorer: give one, or several by name")
        harm = next(iter(scorers))
        super().__init__(
            tester, target, scorers, reward or astprompter_reward(harm), baseline=baseline, harm=harm, credit=credit
        )


class HFASTSystem(ASTPrompterSystem):
    """[`ASTPrompterSystem`] on transformers models.

    A model id that stands for both frozen roles (target and baseline) is loaded once. One loaded model may be given
    for all three roles: with PEFT the frozen ones are the same weights with the adapter off.

    Args:
        tester, target (`str`, `PreTrainedModel` or `HFBackend`):
            A Hub id or folder, a loaded model, or a backend with settings of its own.
        baseline (`str`, `PreTrainedModel` or `HFBackend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Measures harm; see [`ASTPrompterSystem`].
        reward (`Reward`, *optional*):
            Defaults to the paper's, `astprompter_reward()`.
        credit (`Credit`, *optional*, defaults to `immediate`):
            See [`System`].
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tester's tokenizer; defaults to the one saved with the model.
        sampling (`SamplingParams`, *optional*):
            How both sides sample; defaults to the paper's figures.
        max_length (`int`, *optional*):
            Longest context plus utterance in tokens; defaults to each model's window.
        max_rows (`int`, *optional*, defaults to `128`):
            Conversations that pass through a model at a time.
        cache_bytes (`int`, *optional*):
            Memory for the keys and values of each side's conversations; see [`HFBackend`].
        device (`str`, *optional*):
            Where models are put; defaults to the device that accelerate gives this process.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained` of every model that is loaded here: `dtype` (float32 by default, as in TRL),
            `quantization_config`, `attn_implementation`, `revision`, ...
    """

    def __init__(
        self,
        tester: Model,
        target: Model,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        reward: Reward | None = None,
        credit: Credit = immediate,
        processing_class: PreTrainedTokenizerBase | None = None,
        sampling: SamplingParams = ASTPROMPTER_SAMPLING,
        max_length: int | None = None,
        max_rows: int = 128,
        cache_bytes: int | None = None,
        device: str | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device={device!r}, but torch sees no CUDA device: pass device='cpu' or leave it out")
        fields: dict[str, Any] = {
            "sampling": sampling,
            "max_length": max_length,
            "max_rows": max_rows,
            "cache_bytes": cache_bytes,
        }
        loaded: dict[str, HFBackend] = {}  # frozen models by id

        def backend(role: str, model: Model, tokenizer: PreTrainedTokenizerBase | None = None) -> HFBackend:
            if isinstance(model, HFBackend):
                return replace(model)  # a role's own: training swaps its model and adapter
            if not isinstance(model, str):
                return HFBackend(model, tokenizer or HFBackend.saved_tokenizer(model, role), **fields)
            if model not in loaded or role == "tester":
                new = HFBackend.from_pretrained(
                    model, role=role, device=device, tokenizer=tokenizer, model_init_kwargs=model_init_kwargs, **fields
                )
                if role == "tester":
                    return new
                loaded[model] = new
            return loaded[model]

        tester_backend = backend("tester", tester, processing_class)
        # A model that was given as the tester too has no other tokenizer.
        target_backend = backend(
            "target", target, tester_backend.tokenizer if target is tester_backend.model else None
        )
        baseline_backend = None
        if baseline is not None and (isinstance(baseline, str) or baseline is not tester):
            known = tester_backend.tokenizer if isinstance(baseline, PreTrainedModel) else None
            baseline_backend = backend("baseline", baseline, known)
            same_vocabulary = (
                baseline_backend.tokenizer.get_vocab() == tester_backend.tokenizer.get_vocab()
                and baseline_backend.model.config.vocab_size == tester_backend.model.config.vocab_size
            )
            if not same_vocabulary:
                raise InputError(
                    "tester and baseline have different vocabularies, so their log-probabilities cannot be compared: "
                    "the baseline must be the tester before training (baseline=None) or share its tokenizer"
                )
        super().__init__(tester_backend, target_backend, baseline_backend, scorer, reward=reward, credit=credit)
