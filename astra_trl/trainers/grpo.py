"""GRPO with every loss type of TRL's GRPOTrainer, on fresh trees each round."""

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from astra_trl.trainers.groups import GroupsConfig, GroupsMixin


@dataclass
class ASTGRPOConfig(GroupsConfig, GRPOConfig):
    """TRL's `GRPOConfig` with what a round is.

    > These parameters have default values different from [`~trl.GRPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`,
    > `disable_dropout` `True`. `num_generations` is the sampler's `tree_width`; `temperature`, `top_p`, `top_k`,
    > `repetition_penalty` and `max_completion_length` are the tester's.

    `loss_type`, `scale_rewards`, `epsilon`, `num_iterations`, ... mean what they mean in TRL. Where few siblings find
    harm, `scale_rewards="none"` keeps differences of likelihood alone from being blown up to those of harm.
    """


class ASTGRPOTrainer(GroupsMixin, GRPOTrainer):
    """Trains the tester of a system on fresh trees round by round; the siblings below a context are the group.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTGRPOConfig`, *optional*):
            Defaults to `ASTGRPOConfig("tester")`.
        eval_dataset (`Sequence[Opening]`, `Dataset` or `str`, *optional*):
            Held-out openings for `evaluate` and `eval_strategy`; or a dictionary of several such.
        reward_funcs (`Sequence[Callable]`, *optional*):
            Further reward functions of TRL's kind, beside the trees' own; they are given the columns `response`,
            `reward`, `depth` and `prompt` too, and `args.reward_weights` weighs all of them, the trees' first.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the tokenizer of the system's tester.
        callbacks, optimizers, peft_config:
            As in TRL. With an adapter the reference is the tester with it off.
    """

    _tag_names = ["trl", "astra-trl", "grpo"]
    config_class = ASTGRPOConfig

    def asks_for_old_policy(self) -> bool:
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]]]:
        return [row["probe_ids"] for row in self._rows], [row["sampling_logprobs"] for row in self._rows]
