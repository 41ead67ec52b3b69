"""RLOO of TRL's RLOOTrainer, on fresh trees each round."""

from dataclasses import dataclass
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from astra_trl.trainers.groups import GroupsConfig, GroupsMixin


@dataclass
class ASTRLOOConfig(GroupsConfig, RLOOConfig):
    """TRL's `RLOOConfig` with what a round is.

    > These parameters have default values different from [`~trl.RLOOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`,
    > `disable_dropout` `True`. `num_generations` is the sampler's `tree_width`; `temperature`, `top_p`, `top_k`,
    > `repetition_penalty` and `max_completion_length` are the tester's.

    `beta` (KL penalty to the tester before training), `normalize_advantages`, `epsilon`, ... mean what they mean in
    TRL.
    """


class ASTRLOOTrainer(GroupsMixin, RLOOTrainer):
    """Trains the tester of a system on fresh trees round by round; the siblings below a context are the group.

    Its arguments are those of [`ASTGRPOTrainer`], with an [`ASTRLOOConfig`].
    """

    _tag_names = ["trl", "astra-trl", "rloo"]
    config_class = ASTRLOOConfig

    def asks_for_old_policy(self) -> bool:
        return True

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [row["probe_ids"] for row in self._rows]
