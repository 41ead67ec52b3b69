"""PPO by TRL's PPOTrainer, with everything that it alone needs."""

from typing import TYPE_CHECKING

from astra_trl.lazy import lazy_names

if TYPE_CHECKING:
    from astra_trl.trainers.ppo.config import ASTPPOConfig
    from astra_trl.trainers.ppo.trainer import ASTPPOTrainer

__all__ = ["ASTPPOConfig", "ASTPPOTrainer"]

# Loaded when first asked for: newer versions of TRL have no PPOTrainer.
__getattr__ = lazy_names(__name__, {"ASTPPOConfig": "config", "ASTPPOTrainer": "trainer"})
