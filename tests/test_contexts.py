"""Contexts saved as plain data and continued later by another session, process or run."""

import json
from dataclasses import asdict, replace

import pytest
from conftest import make_gpt2, make_llama, make_tokenizer
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama

from astra_trl import ASTPrompterSystem, ASTSampler, HFBackend, KeywordScorer, SamplingParams, Tree, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.base import Sample, SavedRow
from astra_trl.rewards import Backup
from astra_trl.rollout.sampler import Context

GREEDY = SamplingParams(max_new_tokens=6, temperature=0.0)
OPENINGS = ["Good morning, how are you today?", "soup", "I love gardening"]


def plain_backend(seed=0, sampling=GREEDY, **fields):
    tokenizer = make_tokenizer(bos=True)
    return HFBackend(make_llama(tokenizer, seed), tokenizer, sampling, **fields)


def chat_backend():
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    return HFBackend(make_chat_llama(tokenizer), tokenizer, GREEDY, chat=True, system_prompt="Be brief.")


@pytest.mark.parametrize("make", [plain_backend, chat_backend])
def test_a_reopened_row_goes_on_as_the_row_itself_would(make):
    backend = make()
    session = backend.open(OPENINGS, seeds=[1, 2, 3], logprobs=True).branch([(0, 0), (1, 0), (2, 1)])
    said = [sample.text for sample in session.sample()]
    session.append(["Thanks, that sounds lovely."] * 3)
    saved = [SavedRow(**json.loads(json.dumps(asdict(row)))) for row in session.saved()]
    others = backend.open(["late again"], seeds=[4])
    mixed = backend.reopen([saved[2], others.saved()[0], saved[0]], logprobs=True)
    again = mixed.append(["What did you cook?", "x", "What did you cook?"])
    whole = session.append(["What did you cook?"] * 3)
    assert again[0] == pytest.approx(whole[2], abs=1e-5) and again[2] == pytest.approx(whole[0], abs=1e-5)
    later, first = mixed.sample(), session.sample()
    assert (later[0].text, later[2].text) == (first[2].text, first[0].text)
    assert later[0].prompt_ids == first[2].prompt_ids
    assert mixed.saved()[0].prompt_ids == session.saved()[2].prompt_ids
    assert len(said) == 3


def test_saved_prompt_ids_are_what_the_model_would_continue_cut_at_its_window():
    backend = plain_backend(max_length=24)
    session = backend.open(["soup and bread " * 20], seeds=[0])
    (row,) = session.saved()
    assert row.prompt_ids == session.sample()[0].prompt_ids
    assert len(row.prompt_ids) == 24 - GREEDY.max_new_tokens
    assert len(row.state["ids"]) > len(row.prompt_ids)  # the newest may move out of sight later


def test_sampling_on_from_a_reopened_row_depends_on_the_row_and_the_child_alone():
    backend = plain_backend(sampling=SamplingParams(max_new_tokens=6))
    rows = backend.open(OPENINGS, seeds=[1, 2, 3]).saved()
    together = [s.text for s in backend.reopen(rows).branch([(0, 5), (1, 5), (2, 6)]).sample()]
    alone = backend.reopen([rows[1]]).branch([(0, 5), (0, 6)]).sample()
    assert alone[0].text == together[1] != alone[1].text


def test_a_reopened_row_does_not_draw_the_numbers_of_an_earlier_utterance_again():
    session = plain_backend(sampling=SamplingParams(max_new_tokens=6)).open(["soup"], seeds=[1])
    keys = []
    for _ in range(2):
        keys += [row.state["key"] for row in session.saved()]
        session.sample()
    assert keys[0] != keys[1]


def hf_system(target=None, baseline=None, scorer=None) -> ASTPrompterSystem:
    tokenizer = make_tokenizer(bos=True)
    tester = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=6))
    target = target or plain_backend(seed=3)
    return ASTPrompterSystem(tester, target, baseline, scorer or KeywordScorer(["soup", "the", "a", "e"]))


@pytest.mark.parametrize("max_rows", [None, 2])
def test_contexts_answered_with_a_trees_own_probes_give_the_trees_exchanges(max_rows):
    """The target is greedy, so that it says the same again; its likelihoods are those of the tree too."""
    system = hf_system(plain_backend(seed=3, max_rows=max_rows or 128))
    sampler = ASTSampler(system, OPENINGS, tree_width=2, tree_depth=3)
    trees = sampler.grow(OPENINGS, [1, 2, 3])
    contexts = sampler.contexts(OPENINGS, [1, 2, 3])
    assert len(contexts) == 3 * 7
    by_place = {(context.tree, context.path): context for context in contexts}
    grown = [(index, path, node) for index, tree in enumerate(trees) for path, node in tree.walk()]
    own = [by_place[index, path[:-1]] for index, path, _ in grown]
    for context, (_, _, node) in zip(own, grown, strict=True):
        assert context.conversation == node.exchange.context
        assert context.tester.prompt_ids == node.prompt_ids
    own = [Context.from_json(json.loads(json.dumps(asdict(context)))) for context in own]
    probes = [Sample(node.exchange.probe, node.prompt_ids, node.probe_ids) for _, _, node in grown]
    answers = sampler.answer(own, probes, range(len(own)))
    for answer, (_, _, node) in zip(answers, grown, strict=True):
        assert answer.exchange == node.exchange
        assert answer.scores == node.scores
        assert answer.probe_logprob_per_token == pytest.approx(node.probe_logprob_per_token, abs=1e-5)
        assert answer.reward == pytest.approx(node.reward, abs=1e-5) == answer.credit


@pytest.mark.parametrize("make", [plain_backend, chat_backend])
def test_what_was_sampled_elsewhere_may_be_said(make):
    backend = make()
    session = backend.open(OPENINGS, seeds=[1, 2, 3])
    said = session.sample()
    other = backend.open(OPENINGS, seeds=[1, 2, 3])
    other.say(said)
    for one in (session, other):
        one.append(["Thanks."] * 3)
    assert [row.ids for row in other.rows] == [row.ids for row in session.rows]
    assert [sample.ids for sample in other.sample()] == [sample.ids for sample in session.sample()]


@pytest.mark.parametrize("max_rows", [None, 2])
def test_where_credit_looks_ahead_the_turns_that_a_tree_has_left_are_grown_below_an_answer(max_rows):
    """Both sides are greedy, so that a probe leads to what it led to in its tree, and is worth the same."""
    tokenizer = make_tokenizer(bos=True)
    tester = HFBackend(make_gpt2(tokenizer), tokenizer, GREEDY)
    target, baseline = plain_backend(seed=3, max_rows=max_rows or 128), plain_backend(seed=5)
    for reader in (None, baseline):
        target.gives_logprobs = reader is None
        scorer = lambda exchanges: [len(e.response) % 5 / 4 for e in exchanges]  # noqa: E731
        system = ASTPrompterSystem(tester, target, reader, scorer, credit=Backup(0.5))
        sampler = ASTSampler(system, OPENINGS, tree_width=2, tree_depth=3)
        trees = sampler.grow(OPENINGS, [1, 2, 3])
        contexts = {(context.tree, context.path): context for context in sampler.contexts(OPENINGS, [1, 2, 3])}
        grown = [(index, path, node) for index, tree in enumerate(trees) for path, node in tree.walk()]
        own = [contexts[index, path[:-1]] for index, path, _ in grown]
        probes = [Sample(node.exchange.probe, node.prompt_ids, node.probe_ids) for _, _, node in grown]
        answers = sampler.answer(own, probes, range(len(own)))
        for answer, (_, path, node) in zip(answers, grown, strict=True):
            same = zip(Tree((), [answer]).walk(), Tree((), [node]).walk(), strict=True)
            for (place, mine), (its_place, its) in same:
                assert (place, mine.exchange, mine.prompt_ids) == (its_place, its.exchange, its.prompt_ids)
                assert mine.probe_logprob_per_token == pytest.approx(its.probe_logprob_per_token, abs=1e-5)
            assert answer.credit == pytest.approx(node.credit, abs=1e-5)
            assert len(answer.children) == (0 if len(path) == 3 else 2)


def test_a_context_is_answered_anew_with_each_seed():
    system = hf_system(plain_backend(seed=3, sampling=SamplingParams(max_new_tokens=6)))
    sampler = ASTSampler(system, OPENINGS, 2, 1)
    (context,) = sampler.contexts(OPENINGS[:1], [1])
    probe = Sample("soup?", context.tester.prompt_ids, [])
    answers = [node.exchange.response for node in sampler.answer([context] * 3, [probe] * 3, [0, 1, 0])]
    assert answers[0] == answers[2] != answers[1]


def test_the_last_turn_is_not_grown_and_nothing_is_measured():
    asked = []

    def scorer(exchanges):
        asked.append(len(exchanges))
        return [0.0] * len(exchanges)

    said = []
    target = ScriptedBackend(lambda texts, sibling: (said.append(texts), "ok")[1])
    system = ASTPrompterSystem(ScriptedBackend(lambda t, s: f"p{s}"), target, None, scorer)
    contexts = ASTSampler(system, ["hi"], tree_width=3, tree_depth=3).contexts(["hi"], [0])
    assert (len(contexts), len(said), asked) == (13, 12, [])
    assert len(ASTSampler(system, ["hi"], tree_width=3, tree_depth=1).contexts(["hi"], [0])) == 1


def test_what_follows_a_failed_exchange_is_left_out():
    class Failing(ScriptedBackend):
        def open(self, prompts, *, seeds, logprobs=False):
            session = super().open(prompts, seeds=seeds, logprobs=logprobs)
            return FailingSession(session.backend, session.rows, session.logprobs)

    target = Failing(lambda texts, sibling: "ok")
    system = ASTPrompterSystem(ScriptedBackend(lambda t, s: f"p{s}"), target, None, KeywordScorer(["x"]))
    contexts = ASTSampler(system, ["hi"], tree_width=2, tree_depth=3).contexts(["hi"], [0])
    assert [context.path for context in contexts] == [(), (0,), (0, 0)]


class FailingSession(type(ScriptedBackend(lambda t, s: "").open([""], seeds=[0]))):
    def branch(self, children):
        session = super().branch(children)
        return FailingSession(session.backend, session.rows, session.logprobs)

    def sample(self):
        # Whoever was last asked by the second sibling gives no answer.
        asked = [texts[-1] for texts, _ in self.rows]
        samples = super().sample()
        return [
            replace(sample, text="", error="no answer") if probe == "p1" else sample
            for sample, probe in zip(samples, asked, strict=True)
        ]


def test_openings_of_several_turns_come_back_as_they_were():
    opening = (Turn("user", "hello"), Turn("assistant", "hi there"))
    system = ASTPrompterSystem(
        ScriptedBackend(lambda t, s: f"p{s}"), ScriptedBackend(lambda t, s: "ok"), None, KeywordScorer(["x"])
    )
    contexts = ASTSampler(system, [opening], 2, 2).contexts([opening], [0])
    again = [Context.from_json(json.loads(json.dumps(asdict(context)))) for context in contexts]
    assert again == contexts
    assert contexts[0].conversation == opening
