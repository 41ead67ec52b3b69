import math
from dataclasses import replace

import pytest
import torch
from conftest import make_gpt2, make_tokenizer

from astra_trl import (
    ASTPrompterSystem,
    ASTSampler,
    HFBackend,
    InputError,
    KeywordScorer,
    Reward,
    SamplingParams,
    Tree,
    Turn,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.static import ScriptedSession
from astra_trl.evaluation.figures import figures
from astra_trl.results.terminal import transcript
from astra_trl.rewards import Harm
from astra_trl.systems.astprompter import astprompter_reward
from astra_trl.systems.base import System


def say_probe(texts, sibling):
    return f"probe{sibling}"


def say_response(texts, sibling):
    return "you fool" if texts[-1] == "probe1" else "nice"


def scripted_system(**fields) -> ASTPrompterSystem:
    target = ScriptedBackend(say_response, logprob_per_token=-2.0)
    return ASTPrompterSystem(ScriptedBackend(say_probe), target, None, KeywordScorer(["fool"]), **fields)


def test_every_opening_grows_a_full_tree_with_its_own_contexts():
    trees = ASTSampler(scripted_system(), ["one", "two"], tree_width=3, tree_depth=2).grow(["one", "two"], [0, 1])
    assert [tree.opening for tree in trees] == [(Turn("opening", "one"),), (Turn("opening", "two"),)]
    for tree in trees:
        assert [len(group) for group in tree.sibling_groups()] == [3, 3, 3, 3]
    deep = trees[1].children[1].children[2]
    assert deep.exchange.context == (Turn("opening", "two"), Turn("tester", "probe1"), Turn("target", "you fool"))
    assert (deep.exchange.probe, deep.exchange.response) == ("probe2", "nice")
    assert bytes(deep.prompt_ids).decode() == "two\nprobe1\nyou fool"
    assert bytes(deep.probe_ids).decode() == "probe2"


def test_reward_is_exactly_the_weighted_sum_and_its_terms_stay_on_the_node():
    (tree,) = ASTSampler(scripted_system(), ["one"], 2, 1).grow(["one"], [0])
    kind, rude = tree.children
    assert kind.scores == {"harm": 0.0, "harm_probe_and_response": 0.0}
    assert rude.terms == {"harm": 1.0, "probe_and_response_harm": 1.0, "likelihood": -2.0}
    assert kind.reward == pytest.approx(0.1 * -2.0)
    assert rude.reward == pytest.approx(1.0 + 0.5 + 0.1 * -2.0)


def test_weights_are_the_users_and_a_weight_of_zero_drops_the_term():
    system = scripted_system(reward=astprompter_reward(probe_and_response_harm=0.0, likelihood=0.25))
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert tree.children[1].terms == {"harm": 1.0, "likelihood": -2.0}
    assert tree.children[1].reward == pytest.approx(1.0 - 0.5)


def test_a_nan_score_leaves_the_node_without_a_reward():
    target = ScriptedBackend(say_response)
    system = ASTPrompterSystem(ScriptedBackend(say_probe), target, None, lambda e: [math.nan] * len(e))
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert [node.reward for node in tree.children] == [None, None]


def test_an_empty_probe_has_no_likelihood_and_no_reward():
    tester = ScriptedBackend(lambda texts, sibling: "")
    system = ASTPrompterSystem(tester, ScriptedBackend(say_response), None, KeywordScorer(["fool"]))
    (tree,) = ASTSampler(system, ["one"], 1, 2).grow(["one"], [0])
    assert math.isnan(tree.children[0].probe_logprob_per_token)
    assert tree.children[0].reward is None
    assert tree.children[0].children[0].exchange.response == "nice"


def test_likelihood_without_log_probabilities_fails_at_construction():
    silent = ScriptedBackend(say_response, gives_logprobs=False)
    with pytest.raises(InputError, match="'likelihood' needs log-probabilities"):
        ASTPrompterSystem(ScriptedBackend(say_probe), silent, None, KeywordScorer(["fool"]))
    without = astprompter_reward(likelihood=0.0)
    system = ASTPrompterSystem(ScriptedBackend(say_probe), silent, None, KeywordScorer(["fool"]), reward=without)
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert tree.children[1].reward == 1.5


def test_a_system_without_its_harm_scorer_is_refused():
    system = scripted_system()
    with pytest.raises(InputError, match="no scorer named 'harm'"):
        System(system.tester, system.target, {}, system.reward)


@pytest.mark.parametrize(
    ("prompts", "shape", "message"),
    [
        ([], {}, "prompt set is empty"),
        (["fine", 7], {}, "prompt 1 is not text but int"),
        (["fine", "  "], {}, "prompt 1 is empty"),
        (["fine", (Turn("user", " "),)], {}, "prompt 1 is empty"),
        ([("fine",)], {}, "prompt 0 is not text but str: .* or of tuples of Turn"),
        ([()], {}, "prompt 0 is empty"),
        (["fine", "half \ud83d"], {}, "prompt 1 holds a NUL or half a surrogate pair"),
        ([(Turn("user", "a\0"),)], {}, "prompt 0 holds a NUL"),
        (["fine"], {"tree_width": 0}, "tree_width must be at least 1"),
        (["fine"], {"tree_depth": 0}, "tree_depth must be at least 1"),
    ],
)
def test_bad_prompts_and_shapes_are_refused(prompts, shape, message):
    with pytest.raises(InputError, match=message):
        ASTSampler(scripted_system(), prompts, **shape)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 2.0]])
def test_a_scorer_that_answers_wrongly_is_named(scores):
    system = ASTPrompterSystem(ScriptedBackend(say_probe), ScriptedBackend(say_response), None, lambda e: scores)
    with pytest.raises(InputError, match="scorer 'harm' returned"):
        ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])


def test_progress_is_told_level_by_level():
    counts = []
    ASTSampler(scripted_system(), ["a", "b"], 2, 3).grow(["a", "b"], [0, 1], counts.append)
    assert counts == [4, 8, 16]


def test_without_the_targets_log_probabilities_the_baseline_tells_how_likely_a_probe_is():
    tokenizer = make_tokenizer()
    tester, baseline = make_gpt2(tokenizer, seed=1), make_gpt2(tokenizer, seed=2)
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts)}", gives_logprobs=False)
    sampling = SamplingParams(max_new_tokens=6)
    backends = [HFBackend(model, tokenizer, sampling=sampling, max_rows=3) for model in (tester, baseline)]
    system = ASTPrompterSystem(backends[0], target, backends[1], KeywordScorer(["fool"]))
    trees = ASTSampler(system, ["soup", "Good morning"], 2, 2).grow(["soup", "Good morning"], [0, 1])
    for node in (node for tree in trees for node in tree.nodes()):
        context = [i for turn in node.exchange.context for i in tokenizer(turn.text + "\n")["input_ids"]]
        probe = tokenizer(node.exchange.probe)["input_ids"]
        logprobs = baseline(torch.tensor([context + probe])).logits[0].log_softmax(-1)
        start = len(context)
        alone = [logprobs[start + i - 1, token].item() for i, token in enumerate(probe)]
        assert node.probe_logprob_per_token == pytest.approx(sum(alone) / len(alone), abs=1e-4)
        assert node.reward == pytest.approx(0.1 * node.probe_logprob_per_token)
    assert all("answer" in tokenizer.decode(node.prompt_ids) for node in trees[0].children[0].children)


def test_held_out_scorers_are_reported_and_left_out_of_training():
    calls = []

    def held_out(exchanges):
        calls.append(len(exchanges))
        return [0.25] * len(exchanges)

    scorers = {"trained": KeywordScorer(["fool"]), "other": held_out}
    target = ScriptedBackend(say_response)
    system = ASTPrompterSystem(ScriptedBackend(say_probe), target, None, scorers)
    sampler = ASTSampler(system, ["one"], 2, 1)
    assert system.harm == "trained"
    (tree,) = sampler.grow(["one"], [0])
    assert tree.children[1].scores == {"trained": 1.0, "trained_probe_and_response": 1.0}
    assert calls == []
    system.examine(tree.children)
    both = {"trained": 0.0, "trained_probe_and_response": 0.0, "trained_probe": 0.0}
    assert tree.children[0].scores == {**both, "other": 0.25, "other_probe": 0.25}
    assert calls == [2, 2]
    system.examine(tree.children)
    assert calls == [2, 2]  # what is known is not measured again


def test_a_part_that_the_scorer_reads_by_itself_is_measured_once():
    calls = []

    def says_fool(exchanges):
        calls.append([exchange.response for exchange in exchanges])
        return [float("fool" in exchange.response) for exchange in exchanges]

    reward = Reward({"response": (1.0, Harm("harm", "response")), "probe": (-1.0, Harm("harm", "probe"))})
    system = System(ScriptedBackend(say_probe), ScriptedBackend(say_response), {"harm": says_fool}, reward)
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    system.examine(tree.children)
    assert [node.scores for node in tree.children] == [
        {"harm": harm, "harm_response": harm, "harm_probe": 0.0} for harm in (0.0, 1.0)
    ]
    assert calls == [[node.exchange.response for node in tree.children], ["probe0", "probe1"]]


def test_an_exchange_that_failed_has_no_scores_and_nothing_below_it_counts():
    class Failing(ScriptedBackend):
        def open(self, prompts, *, seeds, logprobs=False):
            session = super().open(prompts, seeds=seeds, logprobs=logprobs)
            return FailingSession(session.backend, session.rows, session.logprobs)

    class FailingSession(ScriptedSession):
        def branch(self, children):
            session = super().branch(children)
            return FailingSession(session.backend, session.rows, session.logprobs)

        def sample(self):
            return [
                replace(sample, text="", error="no answer") if texts[-2:-1] == ("probe1",) else sample
                for (texts, _), sample in zip(self.rows, super().sample(), strict=True)
            ]

    system = ASTPrompterSystem(ScriptedBackend(say_probe), Failing(say_response), None, KeywordScorer(["fool"]))
    (tree,) = ASTSampler(system, ["one"], 2, 2).grow(["one"], [0])
    fine, failed = tree.children
    assert (fine.error, failed.error, failed.scores, failed.reward) == (None, "no answer", {}, None)
    assert [node.error for node in failed.children] == ["an earlier exchange of this conversation failed", "no answer"]
    assert [node.error for node in fine.children] == [None, "no answer"]
    found = figures(tree.nodes())
    assert [found[name] for name in ("exchanges", "failed", "empty_responses", "unscored")] == [6, 4, 0, 0]
    assert "[failed: no answer]" in transcript(Tree(tree.opening, [failed]))


def test_an_opening_of_several_turns_is_a_chat_to_the_target_and_a_text_to_the_tester():
    opening = (Turn("system", "Be kind."), Turn("user", "hi"), Turn("assistant", "hello"))
    system = scripted_system()
    (tree,) = ASTSampler(system, [opening, "one"], 2, 1).grow([opening], [0])
    assert tree.opening == opening
    assert tree.children[0].exchange.context == opening
    assert bytes(tree.children[0].prompt_ids).decode() == "Be kind.\nhi\nhello"
    assert system.target_prompt(opening) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    shown = transcript(tree.from_json(tree.to_json()))
    assert "   system: Be kind.\n     user: hi\nassistant: hello\n   tester: probe0" in shown
