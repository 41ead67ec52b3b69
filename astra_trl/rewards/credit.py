"""Credit assignment: the value of an exchange to the tester, given the exchanges that follow it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from astra_trl.callables import call, check_callable, describe
from astra_trl.errors import InputError
from astra_trl.lookup import build
from astra_trl.numbers import require_numbers
from astra_trl.tree import Tree

# Sets `credit` on every node of a tree whose rewards are known, to `None` if it could not be measured.
Credit = Callable[[Tree], None]
CreditName = Literal["immediate", "backup"]


def immediate(tree: Tree) -> None:
    """Set the credit of every exchange to its reward."""
    for node in tree.nodes():
        node.credit = node.reward


@dataclass(frozen=True)
class Backup:
    """Credit of an exchange's own reward and the best discounted reward that follows.

    `G(n) = r(n) + gamma * max of G over the children`, MALIBU's future reward. Children without credit are left out.
    If an exchange has children and none of them has credit, it has none itself: the future is unknown, and counting
    it as zero would rank the exchange above those whose next turns have a negative reward.

    Args:
        gamma (`float`, *optional*, defaults to `0.9`):
            Discount per turn, in [0, 1].
    """

    gamma: float = 0.9

    def __post_init__(self) -> None:
        require_numbers(gamma=self.gamma)

    @property
    def looks_ahead(self) -> bool:
        return self.gamma > 0

    def __call__(self, tree: Tree) -> None:
        for node in reversed(list(tree.nodes())):  # children before parents
            node.credit = node.reward
            if node.reward is None or not node.children or not self.looks_ahead:
                continue
            later = [child.credit for child in node.children if child.credit is not None]
            node.credit = node.reward + self.gamma * max(later) if later else None


def looks_ahead(credit: Credit) -> bool:
    """`True` if the credit of an exchange depends on later turns, as it does unless its `looks_ahead` is `False`."""
    return credit is not immediate and getattr(credit, "looks_ahead", True)


def set_credit(credit: Credit, tree: Tree) -> None:
    """Set the credit of every exchange of a tree. Raises `InputError` if the function returns something instead."""
    returned: Any = call("the credit", credit, tree)
    if returned is not None:
        raise InputError(
            f"the credit returned {describe(returned)}: set node.credit on every node, and return nothing"
        )


def get_credit(credit: Credit | str | Mapping[str, Any]) -> Credit:
    """Return the credit of a name, `"immediate"` or `"backup"`, or of `{"type": "backup", "gamma": 0.9}`.

    A function is returned as it is.
    """
    if not isinstance(credit, str | Mapping):
        check_callable("the credit", credit, "tree")
        return credit
    settings = {"type": credit} if isinstance(credit, str) else dict(credit)
    name = settings.pop("type", None)
    if name not in get_args(CreditName):
        raise InputError(f"credit={credit!r}: choose one of {', '.join(get_args(CreditName))}, or give a function")
    return build("credit", "backup", Backup, settings) if name == "backup" else immediate
