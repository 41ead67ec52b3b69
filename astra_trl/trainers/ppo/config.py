"""Settings of PPO."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from accelerate import PartialState

from astra_trl.errors import InputError
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.ppo.loop import PPOConfig

# Fields of transformers' and TRL's configs that neither TRL's loop nor this package reads for PPO.
NOT_READ = (
    # training
    "label_smoothing_factor", "neftune_noise_alpha", "torch_empty_cache_steps", "auto_find_batch_size",
    "average_tokens_across_devices", "include_num_input_tokens_seen", "use_liger_kernel", "liger_kernel_config",
    "use_cache", "full_determinism", "data_seed", "accelerator_config", "parallelism_config",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
    # its data loader
    "dataloader_drop_last", "remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name",
    "ignore_data_skip",
    # evaluations, in which conversations are grown
    "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
    "eval_use_gather_object", "include_for_metrics", "batch_eval_metrics", "num_sample_generations",
    # logging and checkpoints
    "logging_nan_inf_filter", "log_level", "log_level_replica", "debug", "enable_jit_checkpoint",
    "restore_callback_states_from_checkpoint",
    # fields that TRL's scripts read, or that TRL sets by itself
    "sft_model_path", "reward_model_path", "model_adapter_name", "ref_adapter_name", "stop_token_id", "world_size",
    "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size",
    "mini_batch_size",
)  # fmt: skip


@dataclass
class ASTPPOConfig(RoundsConfig, PPOConfig):
    """TRL's `PPOConfig` with the settings of a round.

    > These parameters have default values different from [`~trl.experimental.ppo.PPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `gradient_accumulation_steps` 4, `num_train_epochs` 1000, `lr_scheduler_type`
    > `"constant"`, `stop_token` `"eos"`, `num_sample_generations` 0. `temperature` and `response_length` are the
    > tester's.

    TRL samples the probes here, from the whole distribution: the tester's `top_p`, `top_k`, `repetition_penalty` and
    `min_new_tokens` hold for growing trees and for evaluation only. A probe ends at any end token of the tester, at a
    stop string, and at the end that the system defines. Settings that nothing here reads are refused.
    """

    unit: ClassVar[str] = "context"
    _VALID_DICT_FIELDS = [*PPOConfig._VALID_DICT_FIELDS, "model_init_kwargs"]

    # TRL's other configs have these two, with which recipes load models.
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for from_pretrained when models are loaded from ids."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether models may bring Python code of their own from the Hub."}
    )
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Forward passes per update: their probes are sampled and answered together."}
    )
    contexts_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Contexts a round trains on, with one probe each. Default: as many whole batches as "
            "trees_per_round trees hold."
        },
    )
    temperature: float | None = field(default=None, metadata={"help": "The tester's; leave it out."})
    response_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a probe: the tester's max_new_tokens."}
    )
    stop_token: str | None = field(
        default="eos", metadata={"help": "Leave it at 'eos': a probe ends where the tester ends it."}
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "Leave it at 0: exchanges.jsonl has every sample."}
    )

    def __post_init__(self: Any) -> None:
        super().__post_init__()
        default = PPOConfig(
            self.output_dir, report_to="none", bf16=False, use_cpu=self.use_cpu, num_sample_generations=0
        )
        for name in (name for name in NOT_READ if hasattr(default, name)):
            if getattr(self, name) != getattr(default, name):
                raise InputError(
                    f"{name}={getattr(self, name)!r} has no effect in PPO: leave it out, or train with GRPO"
                )
        if self.stop_token != "eos":
            raise InputError(f"stop_token={self.stop_token!r}: a probe ends where the tester ends it: leave it out")

    def records_per_batch(self: Any, tree_width: int) -> int:
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return batch * PartialState().num_processes
