"""GRPO with every loss type of TRL's GRPOTrainer, on fresh trees each round."""

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from astra_trl.trainers.groups import GroupsConfig, GroupsMixin


@dataclass
class ASTGRPOConfig(GroupsConfig, GRPOConfig):
    """TRL's `GRPOConfig` with the settings of a round.

    > These parameters have default values different from [`~trl.GRPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`,
    > `disable_dropout` `True`. `num_generations` is the sampler's `tree_width`; `temperature`, `top_p`, `top_k`,
    > `repetition_penalty` and `max_completion_length` are the tester's.

    `loss_type`, `scale_rewards`, `epsilon`, `num_iterations`, ... mean what they mean in TRL. If few siblings find
    harm, `scale_rewards="none"` prevents that mere differences of likelihood are scaled up to those of harm.
    """


class ASTGRPOTrainer(GroupsMixin, GRPOTrainer):
    """Trains the tester of a system on fresh trees round by round; the siblings below a context are the group.

    The arguments are those of [`GroupsMixin`], with an [`ASTGRPOConfig`].
    """

    _tag_names = ["trl", "astra-trl", "grpo"]
    config_class = ASTGRPOConfig

    def asks_for_old_policy(self) -> bool:
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]]]:
        return [row["probe_ids"] for row in self._rows], [row["sampling_logprobs"] for row in self._rows]
