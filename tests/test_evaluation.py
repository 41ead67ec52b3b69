import math

from astra_trl import ASTPrompterSystem, ASTSampler, HFASTSystem, KeywordScorer, evaluate
from astra_trl.backends import ScriptedBackend
from astra_trl.evaluation import comparison_table


def make_sampler(rude_on=(), logprobs=True, baseline=None, scorers=None) -> ASTSampler:
    tester = ScriptedBackend(lambda texts, sibling: f"probe {texts[0]}")
    target = ScriptedBackend(
        lambda texts, sibling: "you fool" if texts[0] in rude_on else "nice", gives_logprobs=logprobs
    )
    system = ASTPrompterSystem(tester, target, baseline, scorers or KeywordScorer(["fool"]))
    return ASTSampler(system, ["a", "b", "c", "d"], 2, 2)


def unsure(exchanges):
    return [math.nan if exchange.context[0].text == "d" else 0.5 for exchange in exchanges]


def test_figures_are_shares_over_turns_and_by_scorer():
    scorers = {"words": KeywordScorer(["fool"]), "unsure": unsure, "kind": KeywordScorer(["nice"])}
    figures = evaluate(make_sampler(["a"], scorers=scorers), ["a", "b", "c", "d"], seed=0).figures
    assert figures["harmful_share"] == 0.25
    assert figures["harmful_share_by_turn"] == [0.25, 0.25]
    assert figures["harmful_share_by_scorer"] == {"words": 0.25, "unsure": 1.0, "kind": 0.75}  # of those scored
    assert figures["unscored_by_scorer"] == {"words": 0, "unsure": 2, "kind": 0}
    assert (figures["exchanges"], figures["unscored"], figures["unrewarded"]) == (8, 0, 0)


def test_the_table_names_the_scorers_and_what_could_not_be_scored():
    long = "classifier:someone/with-a-very-long-name-of-a-model"
    scorers = {"words": KeywordScorer(["fool"]), "unsure": unsure, long: KeywordScorer(["nice"])}
    before = evaluate(make_sampler(scorers=scorers), ["a", "b", "c", "d"], seed=0)
    after = evaluate(make_sampler(["a", "d"], scorers=scorers), ["a", "b", "c", "d"], seed=0)
    table = comparison_table(before, after).splitlines()
    assert table == [
        "4 held-out openings                         before       after",
        "harmful responses by words                    0.0%       50.0%",
        "  turn 1                                      0.0%       50.0%",
        "  turn 2                                      0.0%       50.0%",
        "harmful by unsure, held out                 100.0%      100.0%",
        "harmful by classifier:someone/with-a…       100.0%       50.0%",
        "mean reward                                 -0.100       0.650",
        "probe log-probability per token             -1.000      -1.000",
        "not scored by unsure                             2           2",
    ]


def test_one_scorer_needs_no_name_and_the_baselines_likelihood_is_called_so():
    baseline = ScriptedBackend(lambda texts, sibling: "", logprob_per_token=-3.0)
    evaluation = evaluate(make_sampler(logprobs=False, baseline=baseline), ["a"], seed=0)
    table = comparison_table(evaluation, evaluation)
    assert "harmful responses   " in table and "held out:" not in table
    assert "probe log-prob. per token (baseline)        -3.000      -3.000" in table


def test_likelihood_is_the_targets_where_target_and_baseline_are_one_model(gpt2_folder):
    path = str(gpt2_folder)
    system = HFASTSystem(path, path, path, KeywordScorer(["soup"]))
    assert system.target is system.baseline
    assert evaluate(ASTSampler(system, ["a"], 1, 1), ["a"], seed=0).likelihood_under == "target"


def test_exchanges_without_a_reward_are_counted():
    sampler = make_sampler(scorers={"unsure": unsure})
    table = comparison_table(*(evaluate(sampler, ["a", "d"], seed=0) for _ in range(2)))
    assert "exchanges without a reward                       2           2" in table
