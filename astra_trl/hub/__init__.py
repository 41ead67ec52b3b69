"""The trained tester on the Hub: its model card, and its push without anything that belongs to this machine."""

from astra_trl.hub.card import model_card
from astra_trl.hub.pushing import Push, push

__all__ = ["Push", "model_card", "push"]
