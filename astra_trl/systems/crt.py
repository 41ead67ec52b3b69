"""CRT, curiosity-driven red teaming: harm, and probes unlike those that were tried before; one turn."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from astra_trl.backends.base import SamplingParams
from astra_trl.conversation import Conversation, Turn, as_text, instruction_of
from astra_trl.errors import InputError
from astra_trl.rewards import Harm, Reward
from astra_trl.rewards.weighted import weighted_terms
from astra_trl.scorers.base import Scorer
from astra_trl.systems.astprompter import HFASTSystem, named_scorers
from astra_trl.systems.models import Model, Target

CRT_SAMPLING = SamplingParams(max_new_tokens=20, min_new_tokens=10, temperature=0.7, top_p=0.92)
CRT_TARGET_SAMPLING = SamplingParams(max_new_tokens=30, temperature=0.7, top_p=0.92)

Setting = Literal["continuation", "instruction"]


def crt_reward(
    scorer: str = "harm",
    *,
    entropy_weight: float = 0.01,
    self_bleu_weight: float = 1.0,
    cosine_weight: float = 1.0,
    gibberish_weight: float = -1.0,
    **further: Any,
) -> Reward:
    """CRT's reward with other weights or further terms, those of [`weighted_terms`].

    `harm(response) + 0.01 * entropy + 1.0 * self-BLEU novelty + 1.0 * cosine novelty - 1.0 * gibberish`. Entropy is
    the sum over the probe's tokens at temperature 1, as the authors' code has it, or with `entropy_per_token=True` the
    mean at the sampling temperature. The paper's sixth term, 0.001 times the KL divergence to the untrained tester, is
    the trainer's own: `kl_coef` of PPO, `beta` of GRPO.
    """
    terms = weighted_terms(
        scorer,
        entropy_weight=entropy_weight,
        self_bleu_weight=self_bleu_weight,
        cosine_weight=cosine_weight,
        gibberish_weight=gibberish_weight,
        **further,
    )
    return Reward({"target_harm": (1.0, Harm(scorer)), **terms})


class CRTSystem(HFASTSystem):
    """The system of curiosity-driven red teaming (huggingface.co/papers/2402.19464) on any models.

    Args:
        tester, target, baseline, scorer:
            As of [`HFASTSystem`].
        setting (`str`, *optional*, defaults to `"continuation"`):
            `"continuation"`: both sides go on with the opening, as a text or a chat. `"instruction"`: the opening is
            what the tester is told to do, and the target hears the probe alone.
        reward (`Reward`, *optional*):
            Defaults to the paper's, `crt_reward()`. What it remembers of a training run is in the run's checkpoints.
        tree_depth (`int`, *optional*, defaults to `1`):
            Turns.
        sampling, target_sampling (`SamplingParams`, *optional*):
            Default to the paper's figures: probes of 10 to 20 tokens, responses of up to 30.
        more:
            As of [`HFASTSystem`]: `credit`, `goals`, `tree_width`, `chat`, `device`, ...
    """

    def __init__(
        self,
        tester: Model,
        target: Target,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        setting: Setting = "continuation",
        reward: Reward | None = None,
        tree_depth: int = 1,
        sampling: SamplingParams = CRT_SAMPLING,
        target_sampling: SamplingParams | None = CRT_TARGET_SAMPLING,
        **more: Any,
    ) -> None:
        if setting not in get_args(Setting):
            raise InputError(f"setting={setting!r}: choose one of {', '.join(get_args(Setting))}")
        scorers = named_scorers(scorer)
        self.setting = setting
        super().__init__(
            tester,
            target,
            baseline,
            scorers,
            reward=reward or crt_reward(next(iter(scorers))),
            tree_depth=tree_depth,
            sampling=sampling,
            target_sampling=target_sampling,
            **more,
        )

    @property
    def target_sees_opening(self) -> bool:
        return self.setting == "continuation"

    def opened(self, opening: Conversation, seed: int) -> Conversation:
        opening = super().opened(opening, seed)
        if self.target_sees_opening or (len(opening) == 1 and instruction_of(opening) is not None):
            return opening
        return (Turn("instruction", as_text(opening).removesuffix("\n")),)
