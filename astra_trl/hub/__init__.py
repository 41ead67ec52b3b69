"""The trained tester on the Hub: its model card, and a push that uploads nothing private."""

from astra_trl.hub.card import model_card
from astra_trl.hub.pushing import Push, push

__all__ = ["Push", "model_card", "push"]
