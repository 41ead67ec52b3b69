"""What turns measurements into the number the tester is trained on."""

from astra_trl.rewards.base import Reward, Term
from astra_trl.rewards.credit import Backup, Credit, immediate
from astra_trl.rewards.harm import Harm
from astra_trl.rewards.length import Length
from astra_trl.rewards.likelihood import Likelihood
from astra_trl.rewards.repetition import NonRepeating

__all__ = [
    "Backup",
    "Credit",
    "Harm",
    "Length",
    "Likelihood",
    "NonRepeating",
    "Reward",
    "Term",
    "immediate",
]
