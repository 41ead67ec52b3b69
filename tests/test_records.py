"""What there is to train on in grown trees, for our trainers and in TRL's documented formats."""

import math

import pytest

from astra_trl import ASTPrompterSystem, ASTSampler, Exchange, InputError, Node, Tree, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.rollout.records import Records, group_records, preference_pair, preference_records, usable_group

OPENING = (Turn("opening", "hi"),)


def make_node(probe: str, reward: float | None, context=OPENING, **fields) -> Node:
    return Node(Exchange(context, probe, "ok"), [1, 2], list(probe.encode()), reward=reward, credit=reward, **fields)


def test_a_pair_is_best_against_worst():
    siblings = [make_node("b", 0.5), make_node("a", -1.0), make_node("d", 2.0), make_node("c", 0.0)]
    assert preference_pair(siblings) == (siblings[2], siblings[1])


@pytest.mark.parametrize(
    ("siblings", "min_margin"),
    [
        ([("a", 1.0), ("b", 1.0)], 0.0),  # equal reward
        ([("a", 1.0), ("a", 2.0)], 0.0),  # equal text
        ([("a", 1.0), ("b", 1.5)], 0.5),  # not more than the margin
        ([("a", 1.0), ("b", None)], 0.0),  # one could not be scored
        ([("a", None), ("b", None)], 0.0),
    ],
)
def test_ties_equal_texts_and_unscored_siblings_are_no_pairs(siblings, min_margin):
    assert preference_pair([make_node(*sibling) for sibling in siblings], min_margin) is None


def test_an_unscored_sibling_is_left_out_of_the_pair_of_the_others():
    siblings = [make_node("a", None), make_node("b", 1.0), make_node("c", 0.0)]
    assert preference_pair(siblings) == (siblings[1], siblings[2])


def test_records_hold_the_ids_as_sampled_and_say_where_they_are_from():
    first, second = make_node("a", 1.0), make_node("b", 0.0)
    context = first.exchange.conversation
    first.children = [make_node("c", 0.25, context), make_node("d", 0.75, context)]
    tie = Tree(OPENING, [make_node("x", 1.0), make_node("y", 1.0)])
    records = preference_records([tie, Tree(OPENING, [first, second])])
    assert [(r["tree"], r["depth"], r["chosen"], r["rejected"]) for r in records] == [
        (1, 0, "a", "b"),
        (1, 1, "d", "c"),
    ]
    assert records[1] == {
        "tree": 1,
        "depth": 1,
        "prompt": "hi\na\nok\n",
        "chosen": "d",
        "rejected": "c",
        "chosen_reward": 0.75,
        "rejected_reward": 0.25,
        "prompt_ids": [1, 2],
        "chosen_ids": [100],
        "rejected_ids": [99],
    }


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0.25, 0.25], "2 trees with 4 exchanges hold no pair .* all rewards tie at 0.25"),
        ([None, None], "no exchange has a reward, as "),
        ([1.0, None], "all rewards tie at 1"),
    ],
)
def test_a_round_without_any_pair_says_why(rewards, message):
    trees = [Tree(OPENING, [make_node("a", rewards[0]), make_node("b", rewards[1])]) for _ in range(2)]
    with pytest.raises(InputError, match=message):
        Records(trees).preferences()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": "timed out"}, r"as 4 calls failed \(timed out\): fix the target, or how it is called"),
        ({"exchange": Exchange((), "a", "")}, "as 4 responses are empty: raise min_new_tokens, or set chat"),
        ({"scores": {"harm": math.nan}}, "as 4 scores 'harm' are nan: check the scorer"),
        ({"terms": {"harm": 0.5, "likelihood": math.nan}}, "as 4 terms 'likelihood' are nan: check the term, and the"),
    ],
)
def test_a_round_without_any_reward_says_what_failed(change, message):
    trees = [Tree(OPENING, [make_node("a", None), make_node("b", None)]) for _ in range(2)]
    for node in (node for tree in trees for node in tree.nodes()):
        for name, value in change.items():
            setattr(node, name, value)
    with pytest.raises(InputError, match=message):
        Records(trees).preferences()


def test_equal_texts_everywhere_are_told_from_equal_rewards():
    trees = [Tree(OPENING, [make_node("a", 0.0), make_node("a", 1.0)])]
    with pytest.raises(InputError, match="tie or say the same: raise the temperature"):
        Records(trees).preferences()


def test_nan_terms_count_as_unscored():
    target = ScriptedBackend(lambda texts, sibling: "nice")
    system = ASTPrompterSystem(ScriptedBackend(lambda t, s: f"p{s}"), target, None, lambda e: [math.nan] * len(e))
    trees = ASTSampler(system, ["a"], 2, 1).grow(["a"], [0])
    with pytest.raises(InputError, match="scores 'harm' are nan"):
        Records(trees).preferences()


def make_tree() -> Tree:
    """Two siblings, and below the first of them two more."""
    first = make_node("a", 1.0, scores={"harm": 1.0}, sampling_logprobs=[-0.5])
    second = make_node("b", 0.0, scores={"harm": 0.0}, sampling_logprobs=[-1.5])
    context = first.exchange.conversation
    first.children = [
        make_node("c", None, context, scores={"harm": math.nan}),
        make_node("d", 0.75, context, scores={"harm": 0.25}),
        make_node("e", -0.5, context, scores={"harm": 0.0}),
    ]
    return Tree(OPENING, [first, second])


CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "ok"},
]


@pytest.mark.parametrize(
    ("format", "rows"),
    [
        ("text", [("hi\n", "a", "b"), ("hi\na\nok\n", "d", "e")]),
        (
            "conversational",
            [
                (CHAT[:1], [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]),
                (CHAT, [{"role": "assistant", "content": "d"}], [{"role": "assistant", "content": "e"}]),
            ],
        ),
        ("ids", [([1, 2], [97], [98]), ([1, 2], [100], [101])]),
    ],
)
def test_preferences_are_in_trls_format(format, rows):
    dataset = Records([make_tree()]).preferences(format)
    ids = "_ids" if format == "ids" else ""
    names = [f"{name}{ids}" for name in ("prompt", "chosen", "rejected")]
    assert dataset.column_names == [*names, "chosen_reward", "rejected_reward"]
    assert [tuple(row[name] for name in names) for row in dataset] == rows
    assert dataset["chosen_reward"][:] == [1.0, 0.75] and dataset["rejected_reward"][:] == [0.0, -0.5]
    assert len(Records([make_tree()]).preferences(format, min_margin=1.0)) == 1


def test_groups_hold_a_list_entry_for_each_sibling():
    first, second = Records([make_tree()]).groups()
    assert first == {
        "prompt": "hi\n",
        "probe": ["a", "b"],
        "response": ["ok", "ok"],
        "reward": [1.0, 0.0],
        "sampling_logprobs": [[-0.5], [-1.5]],
    }
    assert second["reward"] == [None, 0.75, -0.5]  # who could not be measured stays in its place
    ids = Records([make_tree()]).groups("ids")[1]
    assert (ids["prompt_ids"], ids["probe_ids"]) == ([1, 2], [[99], [100], [101]])


def test_transitions_leave_out_what_could_not_be_measured():
    dataset = Records([make_tree()]).transitions()
    assert [(row["prompt"], row["completion"], row["reward"], row["depth"]) for row in dataset] == [
        ("hi\n", "a", 1.0, 0),
        ("hi\na\nok\n", "d", 0.75, 1),
        ("hi\na\nok\n", "e", -0.5, 1),
        ("hi\n", "b", 0.0, 0),
    ]
    assert [row["scores"] for row in dataset] == [{"harm": 1.0}, {"harm": 0.25}, {"harm": 0.0}, {"harm": 0.0}]
    chat = Records([make_tree()]).transitions("conversational")[1]
    assert (chat["prompt"], chat["completion"]) == (CHAT, [{"role": "assistant", "content": "d"}])
    assert Records([make_tree()]).transitions("ids")[0]["completion_ids"] == [97]


def test_an_opening_of_several_turns_keeps_its_roles_as_the_tester_sees_them():
    opening = (Turn("system", "be kind"), Turn("user", "hello"), Turn("assistant", "hi there"))
    tree = Tree(opening, [make_node("a", 1.0, opening), make_node("b", 0.0, opening)])
    (row,) = Records([tree]).preferences("conversational")
    # The one who asked was in the tester's place.
    assert [message["role"] for message in row["prompt"]] == ["system", "assistant", "user"]


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="format='txt': choose one of text, conversational, ids"):
        Records([make_tree()]).preferences("txt")


@pytest.mark.parametrize(
    ("rewards", "min_margin", "usable"),
    [
        ([1.0, 0.0], None, True),
        ([1.0, 1.0], None, True),  # a tie, as TRL itself would keep it
        ([1.0, 1.0], 0.0, False),
        ([1.0, 0.5], 0.5, False),
        ([1.0, 0.25], 0.5, True),
        ([1.0, None], None, False),
        ([1.0, None, 1.0], None, True),
    ],
)
def test_groups_that_cannot_be_compared_are_left_out(rewards, min_margin, usable):
    group = [make_node(str(i), reward) for i, reward in enumerate(rewards)]
    assert usable_group(group, min_margin) is usable
    assert len(group_records([Tree(OPENING, group)], min_margin)) == usable


def test_pairs_and_groups_go_by_credit_not_by_reward():
    tree = make_tree()
    tree.children[1].credit = 5.0
    assert Records([tree]).preferences()[0]["chosen"] == "b"
    assert Records([tree]).groups()[0]["reward"] == [1.0, 5.0]
    assert preference_records([tree])[0]["chosen_reward"] == 5.0


def test_collect_grows_as_many_trees_as_asked_and_equal_seeds_give_equal_ones():
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling} {len(texts)}")
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts)}")
    system = ASTPrompterSystem(tester, target, None, lambda e: [len(x.probe) % 2 / 2 for x in e])
    sampler = ASTSampler(system, [f"opening {i}" for i in range(20)], tree_width=2, tree_depth=2)
    records = sampler.collect(3, seed=1)
    assert [len(list(tree.nodes())) for tree in records.trees] == [6, 6, 6]
    openings = [tree.opening for tree in records.trees]
    assert len(set(openings)) == 3
    assert openings == [tree.opening for tree in sampler.collect(3, seed=1).trees]
    assert openings != [tree.opening for tree in sampler.collect(3, seed=2).trees]
    assert len(records.transitions()) == 18
    with pytest.raises(InputError, match="trees must be at least 1"):
        sampler.collect(0)
