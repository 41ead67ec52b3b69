"""ASTRA-RL's `Trainer` and `TrainingConfiguration`, which build the trainers of this package."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from astra_trl.errors import InputError
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.solvers import DPO, PPO

if TYPE_CHECKING:
    from astra_trl.trainers.dpo import ASTDPOTrainer
    from astra_trl.trainers.ppo import ASTPPOTrainer

# With the weight decay that each has in torch, where ASTRA-RL takes them from.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optim": "adamw_torch", "weight_decay": 0.0},
    "adamw": {"optim": "adamw_torch", "weight_decay": 0.01},
    "sgd": {"optim": "sgd", "weight_decay": 0.0},
    "rmsprop": {"optim": "rmsprop", "weight_decay": 0.0},
    "adagrad": {"optim": "adagrad", "weight_decay": 0.0},
}


@dataclass
class TrainingConfiguration:
    """Settings of [`Trainer`] under the names of ASTRA-RL.

    The TRL way is [`ASTDPOConfig`] or [`ASTPPOConfig`], whose fields are named below.

    Args:
        lr (`float`, *optional*, defaults to `1e-5`):
            Learning rate: `learning_rate`.
        batch_size (`int`, *optional*, defaults to `4`):
            Pairs, or probes, per device and forward pass: `per_device_train_batch_size`.
        optimizer (`str`, *optional*, defaults to `"adamw"`):
            `"adam"`, `"adamw"`, `"sgd"`, `"rmsprop"` or `"adagrad"`: `optim`, with torch's default `weight_decay`.
        gradient_accumulation_steps (`int`, *optional*, defaults to `1`):
            Forward passes per optimizer step.
        training_steps (`int`, *optional*, defaults to `1000`):
            Rounds: collect trees, train on them once. The field is `num_train_epochs`, not `max_steps`, which counts
            optimizer steps.
        num_episodes_per_experience (`int`, *optional*, defaults to `2`):
            Trees per round: `trees_per_round`. If they hold fewer pairs than sibling groups, further trees are grown.
        output_dir (`str`, *optional*, defaults to `"tester"`):
            Folder of the run: checkpoints, transcripts, figures.
    """

    lr: float = 1e-5
    batch_size: int = 4
    optimizer: str = "adamw"
    gradient_accumulation_steps: int = 1
    training_steps: int = 1000
    num_episodes_per_experience: int = 2
    output_dir: str = "tester"


def Trainer(
    config: TrainingConfiguration, sampler: ASTSampler, algorithm: DPO | PPO, **kwargs: Any
) -> "ASTDPOTrainer | ASTPPOTrainer":
    """Build the trainer of a solver: an [`ASTDPOTrainer`] for [`DPO`] and [`IPO`], an [`ASTPPOTrainer`] for [`PPO`].

    The TRL way is `ASTDPOTrainer(sampler, ASTDPOConfig("tester", learning_rate=1e-5, ...))`, which has every setting
    of TRL. Those that [`TrainingConfiguration`] does not name keep their defaults: a checkpoint every 500 optimizer
    steps and at the end, no evaluation, a constant learning rate, gradients clipped to norm 1. The trainer makes its
    own optimizer, on the device that accelerate gives it.

    Args:
        config (`TrainingConfiguration`):
            Settings.
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        algorithm ([`DPO`], [`IPO`] or [`PPO`]):
            The solver.
        kwargs:
            For the trainer, e.g. `eval_dataset`, `callbacks`, `peft_config`.

    Raises:
        InputError: the optimizer or the solver is not one of those above.
        MissingExtra: PPO with a TRL that has none, 1.13 or newer.
    """
    if config.optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={config.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    settings = {
        "output_dir": config.output_dir,
        "learning_rate": config.lr,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.training_steps,
        "trees_per_round": config.num_episodes_per_experience,
        **OPTIMIZERS[config.optimizer],
    }
    if isinstance(algorithm, DPO):
        from astra_trl.trainers.dpo import ASTDPOConfig, ASTDPOTrainer

        return ASTDPOTrainer(sampler, ASTDPOConfig(**settings, **algorithm.trainer_settings), **kwargs)
    if isinstance(algorithm, PPO):
        from astra_trl.trainers.ppo import ASTPPOConfig, ASTPPOTrainer

        return ASTPPOTrainer(sampler, ASTPPOConfig(**settings, **algorithm.trainer_settings), **kwargs)
    raise InputError(f"Trainer knows DPO, IPO and PPO, not {type(algorithm).__name__}: train it with a Harness")
