"""Settings of PPO."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from accelerate import PartialState

from astra_trl.errors import InputError
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.ppo.loop import PPOConfig
from astra_trl.trainers.unread import BY_ALL, BY_PPO


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
    unread: ClassVar[Mapping[str, str]] = {**BY_ALL, **BY_PPO}
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
        if self.stop_token != "eos":
            raise InputError(f"stop_token={self.stop_token!r}: a probe ends where the tester ends it: leave it out")

    def unread_defaults(self: Any) -> dict[str, Any]:
        # Several are objects by now, made of their settings.
        trl = PPOConfig(self.output_dir, report_to="none", bf16=False, use_cpu=self.use_cpu, num_sample_generations=0)
        return {f.name: getattr(trl, f.name) for f in fields(trl)}

    def records_per_batch(self: Any, tree_width: int) -> int:
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return batch * PartialState().num_processes
