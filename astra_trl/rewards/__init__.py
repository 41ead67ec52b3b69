"""What turns measurements into the number the tester is trained on."""

from astra_trl.rewards.base import Reward, Term
from astra_trl.rewards.harm import Harm
from astra_trl.rewards.likelihood import Likelihood

__all__ = ["Harm", "Likelihood", "Reward", "Term"]
