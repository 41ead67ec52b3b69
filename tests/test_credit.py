import pytest
from test_records import OPENING, make_node

from astra_trl import ASTPrompterSystem, ASTSampler, InputError, Tree
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards import Backup, immediate


def make_tree() -> Tree:
    """0.5 with children 1.0 (child 2.0) and -1.0; beside it 0.0 with a child that could not be measured."""
    first, second = make_node("a", 0.5), make_node("b", 0.0)
    first.children = [make_node("c", 1.0), make_node("d", -1.0)]
    first.children[0].children = [make_node("e", 2.0)]
    second.children = [make_node("f", None)]
    second.children[0].children = [make_node("g", 3.0)]
    return Tree(OPENING, [first, second])


def credits(tree):
    return {node.exchange.probe: node.credit for node in tree.nodes()}


def test_immediate_credit_is_the_reward():
    tree = make_tree()
    immediate(tree)
    assert credits(tree) == {"a": 0.5, "c": 1.0, "e": 2.0, "d": -1.0, "b": 0.0, "f": None, "g": 3.0}


def test_backed_up_credit_adds_the_best_that_follows():
    tree = make_tree()
    Backup(0.5)(tree)
    # G(c) = 1 + 0.5 * 2; G(a) = 0.5 + 0.5 * max(2, -1). Nothing is known of what follows b, so it has none.
    assert credits(tree) == {"a": 1.5, "c": 2.0, "e": 2.0, "d": -1.0, "b": None, "f": None, "g": 3.0}


def test_a_gamma_of_0_is_immediate():
    tree, other = make_tree(), make_tree()
    Backup(0.0)(tree)
    immediate(other)
    assert credits(tree) == credits(other)


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_gamma_is_a_discount(gamma):
    with pytest.raises(InputError, match="gamma must be between 0 and 1, got"):
        Backup(gamma)


def test_the_systems_credit_is_set_on_what_the_sampler_grows():
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling}")
    target = ScriptedBackend(lambda texts, sibling: "bad" if len(texts) == 4 and texts[1] == "probe0" else "good")
    system = ASTPrompterSystem(
        tester, target, None, lambda e: [float(x.response == "bad") for x in e], credit=Backup(0.5)
    )
    (tree,) = ASTSampler(system, ["hi"], tree_width=2, tree_depth=2).grow(["hi"], [0])
    first, second = tree.children
    assert first.credit == pytest.approx(first.reward + 0.5 * max(child.reward for child in first.children))
    assert first.credit > first.reward and first.credit > second.credit
    assert [child.credit for child in first.children] == [child.reward for child in first.children]
