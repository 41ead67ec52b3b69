"""PPO by TRL's PPOTrainer, with everything that it alone needs."""

from typing import TYPE_CHECKING

from astra_trl.lazy import lazy_imports

if TYPE_CHECKING:
    from astra_trl.trainers.ppo.config import ASTPPOConfig as ASTPPOConfig
    from astra_trl.trainers.ppo.trainer import ASTPPOTrainer as ASTPPOTrainer

# Loaded when first asked for: newer versions of TRL have no PPOTrainer.
__getattr__, __all__ = lazy_imports(__name__)
