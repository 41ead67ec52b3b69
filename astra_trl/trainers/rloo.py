"""RLOO of TRL's RLOOTrainer, on fresh trees each round."""

from dataclasses import dataclass
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from astra_trl.trainers.groups import GroupsConfig, GroupsMixin


@dataclass
class ASTRLOOConfig(GroupsConfig, RLOOConfig):
    """TRL's `RLOOConfig` with the settings of a round. The defaults that differ are those of [`ASTGRPOConfig`].

    `beta` (KL penalty to the tester before training), `normalize_advantages`, `epsilon`, ... mean what they mean in
    TRL.
    """


class ASTRLOOTrainer(GroupsMixin, RLOOTrainer):
    """Trains the tester of a system on fresh trees round by round; the siblings below a context are the group.

    The arguments are those of [`GroupsMixin`], with an [`ASTRLOOConfig`].
    """

    _tag_names = ["trl", "astra-trl", "rloo"]
    config_class = ASTRLOOConfig

    def asks_for_old_policy(self) -> bool:
        return True

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [row["probe_ids"] for row in self._rows]
