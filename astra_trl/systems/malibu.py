"""MALIBU: an exchange is worth what it leads to, over conversations of four turns."""

from collections.abc import Mapping
from typing import Any, ClassVar

from astra_trl.errors import InputError
from astra_trl.rewards.credit import Backup
from astra_trl.scorers.base import Scorer
from astra_trl.systems.astprompter import HFASTSystem
from astra_trl.systems.models import Model, Target


class MalibuSystem(HFASTSystem):
    """[`HFASTSystem`] with longer trees and future reward backed up: `G(n) = r(n) + gamma * max of G(child)`.

    For weaknesses that show turns after they were brought about, of which an exchange's own reward tells nothing. The
    figures it is about are `first_harmful_turn`, `target_harmful_first` (conversations in which the target turns
    harmful before any probe is) and `first_credit`, the credit of first probes.

    Args:
        tester, target, baseline, scorer:
            As of [`HFASTSystem`], and so is all else.
        gamma (`float`, *optional*, defaults to `0.9`):
            Discount of each further turn, in [0, 1].
        tree_depth (`int`, *optional*, defaults to `4`):
            Turns that a sampler of this system grows.
    """

    label: ClassVar[str | None] = "MALIBU"
    paper: ClassVar[str | None] = None  # unpublished
    defaults: ClassVar[Mapping[str, Any]] = {"tree_depth": 4}

    def __init__(
        self,
        tester: Model,
        target: Target,
        baseline: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        *,
        gamma: float = 0.9,
        tree_depth: int = 4,
        **more: Any,
    ) -> None:
        if "credit" in more:
            raise InputError("malibu backs up credit: give gamma, or use system astprompter with a tree_depth of 4")
        super().__init__(tester, target, baseline, scorer, credit=Backup(gamma), tree_depth=tree_depth, **more)
