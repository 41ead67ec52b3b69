import json
import math

from astra_trl.conversation import Exchange, Turn
from astra_trl.tree import Node, Tree

OPENING = (Turn("opening", "hi"),)


def make_node(probe: str, context=OPENING, **fields) -> Node:
    return Node(Exchange(context, probe, probe.upper()), [1], [2], **fields)


def make_tree() -> Tree:
    first, second = make_node("a", reward=1.5), make_node("b", scores={"harm": math.nan}, error="no answer")
    first.children = [make_node("c", first.exchange.conversation), make_node("d", first.exchange.conversation)]
    return Tree(OPENING, [first, second])


def test_conversation_grows_by_probe_and_response():
    conversation = make_node("a").exchange.conversation
    assert conversation == (Turn("opening", "hi"), Turn("tester", "a"), Turn("target", "A"))


def test_walk_names_paths_with_parents_before_children():
    walked = [(path, node.exchange.probe) for path, node in make_tree().walk()]
    assert walked == [((0,), "a"), ((0, 0), "c"), ((0, 1), "d"), ((1,), "b")]


def test_sibling_groups_are_the_children_of_every_node_that_has_some():
    groups = [[node.exchange.probe for node in group] for group in make_tree().sibling_groups()]
    assert groups == [["a", "b"], ["c", "d"]]
    assert list(Tree(OPENING).sibling_groups()) == []


def test_json_round_trip_keeps_everything_and_is_valid_json():
    tree = make_tree()
    text = json.dumps(tree.to_json(), allow_nan=False)
    again = Tree.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert math.isnan(again.children[1].scores["harm"])
    assert again.children[1].error == "no answer"
    assert again.children[0].children[1].exchange == tree.children[0].children[1].exchange
