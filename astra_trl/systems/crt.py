"""CRT, curiosity-driven red teaming: rewards harm and novel probes in conversations of one turn."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from astra_trl.backends.base import SamplingParams
from astra_trl.conversation import Conversation, Turn, as_text, instruction_of
from astra_trl.errors import InputError
from astra_trl.rewards.base import Reward
from astra_trl.rewards.config import TermSpec
from astra_trl.scorers.base import Scorer
from astra_trl.systems.astprompter import HFASTSystem
from astra_trl.systems.base import WHOLE_DISTRIBUTION, sampling_settings
from astra_trl.systems.models import Model, Target

CRT_SAMPLING = SamplingParams(max_new_tokens=20, min_new_tokens=10, temperature=0.7, top_p=0.92)
CRT_TARGET_SAMPLING = SamplingParams(max_new_tokens=30, temperature=0.7, top_p=0.92)

Setting = Literal["continuation", "instruction"]


class CRTSystem(HFASTSystem):
    """The system of curiosity-driven red teaming (huggingface.co/papers/2402.19464) on any models.

    Its reward is `harm + 0.01 * entropy + self-BLEU novelty + cosine novelty - gibberish`. Entropy is the sum over the
    probe's tokens at temperature 1, as in the authors' code. The paper's sixth term, 0.001 times the KL divergence to
    the untrained tester, is the trainer's own: `kl_coef` of PPO, `beta` of GRPO.

    Args:
        tester, target, baseline, scorer:
            See [`HFASTSystem`].
        setting (`str`, *optional*, defaults to `"continuation"`):
            `"continuation"`: both sides continue the opening, as a text or a chat. `"instruction"`: the opening is an
            instruction to the tester, and the target gets only the probe.
        reward (`Reward` or `Mapping`, *optional*):
            Defaults to the paper's. The memory of its terms is part of a run's checkpoints.
        tree_depth (`int`, *optional*, defaults to `1`):
            Turns.
        more:
            Arguments of [`HFASTSystem`]: `credit`, `goals`, `tree_width`, `chat`, `device`, ... `sampling` and
            `target_sampling` default to the paper's: probes of 10 to 20 tokens, responses of up to 30.
    """

    label: ClassVar[str | None] = "CRT"
    paper: ClassVar[str | None] = "2402.19464"
    default_sampling: ClassVar[SamplingParams] = CRT_SAMPLING
    default_target_sampling: ClassVar[SamplingParams | None] = CRT_TARGET_SAMPLING
    defaults: ClassVar[Mapping[str, Any]] = {
        "tree_depth": 1,
        **sampling_settings(CRT_SAMPLING),
        "target_sampling": {"max_new_tokens": 30, "min_new_tokens": 0},
        "reward": {"harm": 1.0, "entropy": 0.01, "self_bleu_novelty": 1.0, "cosine_novelty": 1.0, "gibberish": -1.0},
    }
    algorithm_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ppo": {"kl_coef": 0.001, "learning_rate": 3e-5, "num_ppo_epochs": 4, "gamma": 1.0, "lam": 0.95},
        "grpo": {"beta": 0.001, "learning_rate": 3e-5},
        "rloo": {"beta": 0.001, "learning_rate": 3e-5},
        # GFN keeps the entropy by itself.
        "gfn": {
            "learning_rate": 3e-5,
            **WHOLE_DISTRIBUTION,
            "target_sampling": sampling_settings(CRT_TARGET_SAMPLING),
            "reward": {"harm": 1.0, "self_bleu_novelty": 1.0, "cosine_novelty": 1.0, "gibberish": -1.0},
        },
    }

    def __init__(
        self,
        tester: Model,
        target: Target,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        setting: Setting = "continuation",
        reward: Reward | Mapping[str, TermSpec] | None = None,
        tree_depth: int = 1,
        **more: Any,
    ) -> None:
        if setting not in get_args(Setting):
            raise InputError(f"setting={setting!r}: choose one of {', '.join(get_args(Setting))}")
        self.setting = setting
        super().__init__(tester, target, baseline, scorer, reward=reward, tree_depth=tree_depth, **more)

    @property
    def target_sees_opening(self) -> bool:
        return self.setting == "continuation"

    def prepare_opening(self, opening: Conversation, seed: int) -> Conversation:
        opening = super().prepare_opening(opening, seed)
        if self.target_sees_opening or (len(opening) == 1 and instruction_of(opening) is not None):
            return opening
        return (Turn("instruction", as_text(opening).removesuffix("\n")),)
