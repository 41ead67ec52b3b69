"""Several goals in one system: the tester's instruction, the scorers, and the figures."""

import pytest

from astra_trl import ASTEvaluator, ASTPrompterSystem, ASTSampler, Exchange, Goal, InputError, KeywordScorer, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.evaluation.figures import figures
from astra_trl.results.terminal import summary
from astra_trl.rewards import Harm, Reward
from astra_trl.systems.goals import GoalScorer

INSULTS = Goal("insults the user", KeywordScorer(["fool"]), "insults")
SOUP = Goal("talks of soup", KeywordScorer(["soup"]))


def make_system(goals=(INSULTS, SOUP), scorer=None, heard=None) -> ASTPrompterSystem:
    tester = ScriptedBackend(lambda texts, sibling: f"about {texts[0].splitlines()[0]}")

    def answer(texts, sibling):
        if heard is not None:
            heard.append(texts)
        return "you fool" if "insults" in texts[-1] else "I like soup and every fool does"

    scorer = scorer or KeywordScorer(["nothing"])
    reward = Reward({"harm": (1.0, Harm())})
    return ASTPrompterSystem(tester, ScriptedBackend(answer), None, scorer, reward=reward, goals=goals)


def test_a_goal_is_drawn_for_each_tree_and_only_the_tester_is_told():
    heard = []
    sampler = ASTSampler(make_system(heard=heard), ["hi"], 1, 1)
    trees = sampler.grow(["hi"] * 40, range(40))
    told = [tree.opening[0] for tree in trees]
    assert {turn.speaker for turn in told} == {"instruction"}
    assert 10 <= sum(turn.text == INSULTS.text for turn in told) <= 30
    assert [turn.text for turn in told] == [tree.opening[0].text for tree in sampler.grow(["hi"] * 40, range(40))]
    assert bytes(trees[0].children[0].prompt_ids).decode() == f"{told[0].text}\nhi"
    assert {texts[0] for texts in heard} == {"hi"}


def test_an_opening_may_bring_its_own():
    opening = (Turn("instruction", SOUP.text), Turn("opening", "hi"))
    trees = ASTSampler(make_system(), [opening], 1, 1).grow([opening] * 10, range(10))
    assert {tree.opening for tree in trees} == {opening}


def test_each_goal_is_measured_by_its_own_scorer():
    seen = []

    def watched(exchanges):
        seen.extend(exchanges)
        return [float("fool" in e.response) for e in exchanges]

    goals = (Goal("insults the user", watched), SOUP, Goal("is dull"))
    scorer = GoalScorer(goals, KeywordScorer(["dull"]))

    def about(text, response):
        return Exchange((Turn("instruction", text), Turn("opening", "hi")), "probe", response)

    exchanges = [
        about("talks of soup", "soup, fool"),
        about("insults the user", "soup, fool"),
        about("is dull", "a dull soup"),
        Exchange((Turn("opening", "hi"),), "probe", "dull"),
        about("insults the user", "soup"),
    ]
    assert scorer(exchanges) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert seen == [exchanges[1], exchanges[4]]
    with pytest.raises(InputError, match="no goal with a scorer"):
        GoalScorer([SOUP])(exchanges[3:4])


def test_figures_are_told_by_goal():
    evaluation = ASTEvaluator(make_system(), ["a", "b", "c", "d", "e", "f"], depth=2, draws=20).evaluate()
    trees = evaluation.trees["tester", "ScriptedBackend"]
    about_soup = [tree for tree in trees if tree.opening[0].text == SOUP.text]
    assert 0 < len(about_soup) < 6
    insults, soup = (evaluation.figure(f"goal_harmful_share/{goal.name}") for goal in (INSULTS, SOUP))
    assert (insults.n, soup.n) == (2 * (6 - len(about_soup)), 2 * len(about_soup))
    assert (insults.value, soup.value) == (1.0, 1.0)
    assert evaluation.figure("goal_harmful_conversations/insults").n == 6 - len(about_soup)
    assert evaluation.headline()["harmful_share_by_goal"] == {"insults": 1.0, SOUP.text: 1.0}
    shown = summary(evaluation)
    assert "  goal: insults %" in [str(cell) for cell in shown.columns[0].cells]
    nodes = [node for tree in trees for node in tree.nodes()]
    told = figures(nodes, goals={"insults": INSULTS.text, "soup": SOUP.text, "nobody's": "?"})
    assert (told["harmful_share_goal_insults"], told["harmful_share_goal_soup"]) == (1.0, 1.0)
    assert "harmful_share_goal_nobody's" not in told


def test_the_openings_alone_have_goals_too():
    evaluation = ASTEvaluator(make_system(), ["insults, hi", "hi"] * 3, draws=10).evaluate()
    alone = evaluation.trees["openings", "ScriptedBackend"]
    assert [tree.opening for tree in alone] == [tree.opening for tree in evaluation.trees["tester", "ScriptedBackend"]]
    assert {node.exchange.context[0].speaker for tree in alone for node in tree.children} == {"instruction"}


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="a goal has no text"):
        Goal(" ")
    with pytest.raises(InputError, match="two goals have the same name or text"):
        make_system([SOUP, Goal("talks of soup", name="other")])
