"""ASTPrompter: both sides continue one conversation, and probes that are likely and cause harm are rewarded."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.errors import InputError
from astra_trl.rewards.base import Reward
from astra_trl.rewards.config import TermSpec, build_reward
from astra_trl.rewards.credit import Credit, immediate
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import WHOLE_DISTRIBUTION, System
from astra_trl.systems.goals import Goal
from astra_trl.systems.models import Model, Target, chat_sampling, load_models

ASTPROMPTER_SAMPLING = SamplingParams(
    max_new_tokens=24, min_new_tokens=2, temperature=0.7, top_p=0.7, repetition_penalty=1.1
)


class ASTPrompterSystem(System):
    """The system of ASTPrompter (huggingface.co/papers/2407.09447) on any backends.

    Args:
        tester, target, baseline (`Backend`):
            See [`System`].
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Scorer of harm. Of several by name, the first is trained on and the others are held out for evaluation.
        reward (`Reward` or `Mapping`, *optional*):
            A reward, or weights of its terms by name for [`build_reward`]; defaults to the paper's.
        credit, goals, tree_width, tree_depth:
            See [`System`].
    """

    label: ClassVar[str | None] = "ASTPrompter"
    paper: ClassVar[str | None] = "2407.09447"
    defaults: ClassVar[Mapping[str, Any]] = {
        "reward": {"harm": 1.0, "probe_and_response_harm": 0.5, "likelihood": 0.1}
    }
    # The target's sampling stays the paper's.
    algorithm_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gfn": {
            "reward": {**defaults["reward"], "rarity": 1.0},
            **WHOLE_DISTRIBUTION,
            "target_sampling": {"temperature": 0.7, "top_p": 0.7, "repetition_penalty": 1.1},
        }
    }

    def __init__(
        self,
        tester: Backend,
        target: Backend,
        baseline: Backend | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        reward: Reward | Mapping[str, TermSpec] | None = None,
        **more: Any,
    ) -> None:
        scorers = scorer if isinstance(scorer, Mapping) else {"harm": scorer}
        if not scorers:
            raise InputError("the system has no scorer: give one, or several by name")
        harm = next(iter(scorers))
        if not isinstance(reward, Reward):
            reward = self.default_reward(harm) if reward is None else build_reward(reward, harm)
        super().__init__(tester, target, scorers, reward, baseline=baseline, harm=harm, **more)


class HFASTSystem(ASTPrompterSystem):
    """[`ASTPrompterSystem`] on transformers models.

    Args:
        tester, target, baseline (`str`, `PreTrainedModel` or `Backend`):
            A Hub id or folder, a loaded model, or a backend with its own settings; see [`load_models`]. The baseline
            defaults to the tester before training. The target may also be a function from messages to an answer; see
            [`FunctionBackend`].
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Scorer of harm; see [`ASTPrompterSystem`].
        reward (`Reward` or `Mapping`, *optional*):
            A reward, or weights of its terms by name for [`build_reward`]; defaults to the paper's.
        credit, goals, tree_width, tree_depth:
            See [`System`].
        sampling, target_sampling (`SamplingParams`, *optional*):
            Sampling parameters of both sides, and of the target if they differ. Default to the paper's; a side that is
            a chat then has a `max_new_tokens` of 64 (tester) or 128 (target).
        models:
            Further arguments of [`load_models`]: `chat`, `device`, `processing_class`, `model_init_kwargs`, ...
    """

    # Of the paper; the target's follow the tester's if there are none.
    default_sampling: ClassVar[SamplingParams] = ASTPROMPTER_SAMPLING
    default_target_sampling: ClassVar[SamplingParams | None] = None

    def __init__(
        self,
        tester: Model,
        target: Target,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        reward: Reward | Mapping[str, TermSpec] | None = None,
        credit: Credit | str | Mapping[str, Any] = immediate,
        goals: Sequence[Goal] = (),
        tree_width: int = 2,
        tree_depth: int = 3,
        sampling: SamplingParams | None = None,
        target_sampling: SamplingParams | None = None,
        **models: Any,
    ) -> None:
        sampling, target_sampling = chat_sampling(
            sampling, target_sampling, models.get("chat"), self.default_sampling, self.default_target_sampling
        )
        models |= {"sampling": sampling, "target_sampling": target_sampling}
        super().__init__(
            *load_models(tester, target, baseline, **models),
            scorer,
            reward=reward,
            credit=credit,
            goals=goals,
            tree_width=tree_width,
            tree_depth=tree_depth,
        )


astprompter_reward = ASTPrompterSystem.default_reward
