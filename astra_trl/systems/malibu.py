"""MALIBU: credit for later turns, in conversations of four turns."""

from collections.abc import Mapping
from typing import Any, ClassVar

from astra_trl.errors import InputError
from astra_trl.rewards.credit import Backup
from astra_trl.scorers.base import Scorer
from astra_trl.systems.astprompter import HFASTSystem
from astra_trl.systems.models import Model, Target


class MalibuSystem(HFASTSystem):
    """[`HFASTSystem`] with longer trees and future reward backed up: `G(n) = r(n) + gamma * max of G(child)`.

    It finds weaknesses that show some turns after the probe that caused them. Its figures are `first_harmful_turn`,
    `target_harmful_first` (conversations in which the target is harmful before any probe is) and `first_credit`, the
    credit of first probes.

    Args:
        tester, target, baseline, scorer:
            See [`HFASTSystem`], for further arguments too.
        gamma (`float`, *optional*, defaults to `0.9`):
            Discount per turn, in [0, 1].
        tree_depth (`int`, *optional*, defaults to `4`):
            Turns of the trees of this system's samplers.
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
