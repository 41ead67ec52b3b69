"""Rewards: weighted terms that turn measurements into the number the tester is trained on."""

from astra_trl.rewards.base import Reward, Term
from astra_trl.rewards.credit import Backup, Credit, immediate
from astra_trl.rewards.entropy import Entropy
from astra_trl.rewards.fluency import Gibberish
from astra_trl.rewards.harm import Harm
from astra_trl.rewards.length import Length
from astra_trl.rewards.likelihood import Likelihood
from astra_trl.rewards.novelty import CosineNovelty, SelfBLEUNovelty
from astra_trl.rewards.question import AnswerHarm, NoQuestion
from astra_trl.rewards.rarity import Rarity
from astra_trl.rewards.repetition import NonRepeating

__all__ = [
    "AnswerHarm",
    "Backup",
    "CosineNovelty",
    "Credit",
    "Entropy",
    "Gibberish",
    "Harm",
    "Length",
    "Likelihood",
    "NoQuestion",
    "NonRepeating",
    "Rarity",
    "Reward",
    "SelfBLEUNovelty",
    "Term",
    "immediate",
]
