"""ASTPrompter: both sides continue one conversation; harmful, likely probes are rewarded."""

from collections.abc import Mapping, Sequence
from typing import Any

from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.errors import InputError
from astra_trl.rewards import Credit, Harm, Reward, immediate
from astra_trl.rewards.base import Combine
from astra_trl.rewards.weighted import weighted_terms
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import System
from astra_trl.systems.goals import Goal
from astra_trl.systems.models import Model, Target, load_models

ASTPROMPTER_SAMPLING = SamplingParams(
    max_new_tokens=24, min_new_tokens=2, temperature=0.7, top_p=0.7, repetition_penalty=1.1
)


def astprompter_reward(
    scorer: str = "harm",
    *,
    probe_and_response_weight: float = 0.5,
    likelihood_weight: float = 0.1,
    combine: Combine = "sum",
    **further: Any,
) -> Reward:
    """ASTPrompter's reward with other weights or further terms, those of [`weighted_terms`].

    `harm(response) + probe_and_response_weight * harm(probe + response) + likelihood_weight * mean log-probability per
    token of the probe`, and what else has a weight. In a product the likelihood is the geometric mean of the tokens'
    probabilities.

    Args:
        scorer (`str`, *optional*, defaults to `"harm"`):
            Name of the system's scorer that the reward reads.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"product"`; see [`Reward`].
    """
    terms = weighted_terms(
        scorer,
        probe_and_response_weight=probe_and_response_weight,
        likelihood_weight=likelihood_weight,
        as_probability=combine == "product",
        **further,
    )
    return Reward({"target_harm": (1.0, Harm(scorer)), **terms}, combine)


def named_scorers(scorer: Scorer | Mapping[str, Scorer]) -> Mapping[str, Scorer]:
    """Scorers by name, the one that is trained on first; `InputError` where there is none."""
    scorers = scorer if isinstance(scorer, Mapping) else {"harm": scorer}
    if not scorers:
        raise InputError("the system has no scorer: give one, or several by name")
    return scorers


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
        credit, goals, tree_width, tree_depth:
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
        **more: Any,
    ) -> None:
        scorers = named_scorers(scorer)
        harm = next(iter(scorers))
        super().__init__(
            tester,
            target,
            scorers,
            reward or astprompter_reward(harm),
            baseline=baseline,
            harm=harm,
            **more,
        )


class HFASTSystem(ASTPrompterSystem):
    """[`ASTPrompterSystem`] on transformers models.

    Args:
        tester, target, baseline (`str`, `PreTrainedModel` or `Backend`):
            A Hub id or folder, a loaded model, or a backend with settings of its own; see [`load_models`]. Without a
            baseline it is the tester before training. The target may be a function too: messages -> answer, see
            [`FunctionBackend`].
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Measures harm; see [`ASTPrompterSystem`].
        reward (`Reward`, *optional*):
            Defaults to the paper's, `astprompter_reward()`.
        credit, goals, tree_width, tree_depth:
            See [`System`].
        sampling (`SamplingParams`, *optional*):
            How both sides sample; defaults to the paper's figures.
        models:
            How models are loaded: `chat`, `device`, `processing_class`, `model_init_kwargs`, ... of [`load_models`].
    """

    def __init__(
        self,
        tester: Model,
        target: Target,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        reward: Reward | None = None,
        credit: Credit | str = immediate,
        goals: Sequence[Goal] = (),
        tree_width: int = 2,
        tree_depth: int = 3,
        sampling: SamplingParams = ASTPROMPTER_SAMPLING,
        **models: Any,
    ) -> None:
        super().__init__(
            *load_models(tester, target, baseline, sampling=sampling, **models),
            scorer,
            reward=reward,
            credit=credit,
            goals=goals,
            tree_width=tree_width,
            tree_depth=tree_depth,
        )
