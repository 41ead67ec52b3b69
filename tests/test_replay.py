"""The replay buffer: probes of high reward are asked again, unlike ones first, and forgotten if they fail."""

import json
import math
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from test_groups import hand_made, make_system

from astra_trl import ASTSampler, HFBackend, InputError, SamplingParams
from astra_trl.backends.base import Prefix, Sample, derive_seed
from astra_trl.conversation import Exchange, Turn
from astra_trl.rollout.parts import Parts
from astra_trl.rollout.replay import Entry, ReplayBuffer, capped
from astra_trl.rollout.screening import sample_probes, start_replay
from astra_trl.rollout.variations import entries_in, list_messages, write_variations
from astra_trl.telling_words import TellingWords
from astra_trl.tree import Node, Tree

CONTEXT = (Turn("opening", "hello"),)
DEEPER = (*CONTEXT, Turn("tester", "hi"), Turn("target", "ho"))


def node(probe, harm, context=CONTEXT, replayed=False, **fields) -> Node:
    made = Node(Exchange(context, probe, "answer"), [], [], scores={"harm": harm}, replayed=replayed, **fields)
    made.reward = made.credit = None if math.isnan(harm) else harm
    return made


def drawn(buffer, context=CONTEXT, count=2000) -> Counter[str]:
    contexts = [(Turn("opening", f"{number}"), *context[1:]) for number in range(count)]
    entries = [buffer.draw(one, sibling=1) for one in contexts]
    return Counter(entry.probe for entry in entries if entry is not None)


def filled(*nodes, share=1.0, beta=0.1, size=1000) -> ReplayBuffer:
    buffer = ReplayBuffer(share, beta, size)
    buffer.remember(nodes, "harm")
    buffer.begin_round(0)
    return buffer


def test_probes_are_drawn_by_the_mean_of_their_rewards():
    names = [f"kind{i}" for i in range(100)]

    def usual(counts) -> float:
        return sum(counts[name] for name in names) / len(names)

    # All means are of one more exchange, with the mean reward of all: 0.5.
    buffer = filled(*[node(name, 0.5) for name in names], node("better", 0.7), node("worse", 0.3), beta=0.25)
    assert buffer.spread == pytest.approx(0.7 - 0.3)  # so the temperature is 0.1
    counts = drawn(buffer, count=50000)
    assert counts["better"] / usual(counts) == pytest.approx(math.e, rel=0.1)
    assert counts["worse"] / usual(counts) == pytest.approx(math.exp(-1), rel=0.2)
    buffer.remember([node("better", -0.6, replayed=True)], "harm")
    buffer.begin_round(1)
    counts = drawn(buffer, count=50000)
    assert counts["better"] / usual(counts) == pytest.approx(
        math.exp(((0.7 - 0.6 + 0.5) / 3 - 0.5) / (0.25 * 1.3)), rel=0.2
    )


def test_one_success_counts_less_than_several():
    once, often = node("once", 1.0), [node("often", 1.0, replayed=count > 0) for count in range(4)]
    failed = [node(f"kind{i}", 0.0) for i in range(98)]  # with one more exchange of the mean of probes, 0.02
    counts = drawn(filled(once, *often, *failed, beta=1.0), count=100_000)
    assert counts["often"] / counts["once"] == pytest.approx(math.exp((4 + 0.02) / 5 - (1 + 0.02) / 2), rel=0.1)


def test_draws_are_the_same_for_rewards_of_every_scale():
    def counts(scale):
        return drawn(filled(*[node(f"kind{i}", scale * i / 100) for i in range(100)], beta=0.1))

    assert counts(1.0) == counts(1000.0) and filled(node("only", 0.5)).spread == 1.0


def test_a_weakness_that_is_found_often_does_not_crowd_out_a_rare_one():
    often = [node(f"w{i} tea", 1.0) for i in range(60)]
    harmless = [node(f"w{i} milk", 0.0) for i in range(60)] + [node(f"v{i}", 0.0) for i in range(60)]
    buffer = filled(*often, *harmless, node("v3 rust", 1.0), beta=0.05)
    counts = drawn(buffer)
    assert counts["v3 rust"] / counts.total() == pytest.approx(0.05, abs=0.02)  # one probe's most, of 61
    small = filled(*often, *harmless, node("v3 rust", 1.0), beta=0.05, size=20)
    assert len(small) == 20 and drawn(small)["v3 rust"] > 0


def test_one_probe_is_not_asked_more_than_a_twentieth_of_the_time():
    counts = drawn(filled(*[node(f"kind {i}", 0.0) for i in range(99)], node("lucky", 1.0), beta=0.01))
    assert counts["lucky"] / counts.total() == pytest.approx(0.05, abs=0.02)
    weights = np.exp(np.random.default_rng(0).normal(size=50) * 3)
    lowered = capped(weights, 0.05)
    assert lowered.max() / lowered.sum() <= 0.05 + 1e-6 and (lowered <= weights).all()
    assert np.array_equal(lowered[weights < np.median(weights)], weights[weights < np.median(weights)])
    assert capped(np.array([3.0, 1.0]), 0.05).tolist() == [1.0, 1.0]  # two cannot have less than half each


def test_a_draw_depends_on_round_context_and_sibling_alone_and_on_the_turn_of_the_find():
    buffer = filled(*[node(f"kind {i}", 0.5) for i in range(30)], node("later", 0.5, DEEPER), share=0.5)
    first = [buffer.draw(CONTEXT, sibling) for sibling in range(9)]
    assert first[0] is None and first == [buffer.draw(CONTEXT, sibling) for sibling in range(9)]
    assert {entry.depth for entry in first if entry} == {0}
    assert drawn(buffer, DEEPER).keys() == {"later"}
    assert drawn(buffer).total() == pytest.approx(1000, abs=100)
    buffer.begin_round(1)
    assert first != [buffer.draw(CONTEXT, sibling) for sibling in range(9)]
    assert ReplayBuffer(1.0, 0.1).draw(CONTEXT, 1) is None


def test_what_was_not_measured_is_no_entry():
    failed = node("failed", 1.0, error="timeout")
    failed.credit = None
    assert len(filled(node("unscored", math.nan), failed, node("  ", 1.0))) == 0


def test_the_state_is_json_and_restores_the_buffer():
    buffer = filled(*[node(f"kind {i}", i / 30, probe_cut=i % 2 == 0) for i in range(30)])
    other = ReplayBuffer(1.0, 0.1)
    other.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    other.begin_round(0)
    assert drawn(other) == drawn(buffer) and other.state_dict() == buffer.state_dict()
    with pytest.raises(InputError, match="replay buffer of the checkpoint is damaged"):
        other.load_state_dict({"entries": [{"text": "x"}]})


def test_trees_hold_replayed_probes_as_the_tester_would_have_written_them():
    system = make_system(hand_made)
    sampler = ASTSampler(system, ["a b", "c d", "e f"], tree_width=3, tree_depth=2)
    ended, cut = "a b", "c d e"
    buffer = filled(node(ended, 0.5), node(cut, 0.5, probe_cut=True), node("deep", 0.5, DEEPER), share=0.6)
    with sampler.replaying(buffer):
        trees = sampler.grow(sampler.draw(0, 3), [1, 2, 3])
    plain = sampler.grow(sampler.draw(0, 3), [1, 2, 3])
    nodes = [one for tree in trees for one in tree.nodes()]
    again = [one for one in nodes if one.replayed]
    assert 5 < len(again) < len(nodes) and not any(one.replayed for tree in plain for one in tree.nodes())
    end = system.tester.tokenizer.eos_token_id
    for one in again:
        depth = len(one.exchange.context) // 2
        assert one.exchange.probe in ({ended, cut} if depth == 0 else {"deep"})
        assert one.exchange.response == f"answer {len(one.exchange.probe)}"  # the target heard it
        assert (one.probe_ids[-1] == end) != one.probe_cut and one.sampling_logprobs == [] and one.reward is not None
        assert system.tester.tokenizer.decode(one.probe_ids, skip_special_tokens=True) == one.exchange.probe
    # What was sampled stays the same where the context is, and what follows a replayed probe continues from it.
    for tree, same in zip(trees, plain, strict=True):
        for one, two in zip(tree.children, same.children, strict=True):
            assert one.replayed or (one.exchange, one.probe_ids) == (two.exchange, two.probe_ids)
            for below in one.children:
                assert one.exchange.probe in [turn.text for turn in below.exchange.context]
                ids = system.tester.tokenizer.decode(below.prompt_ids)
                assert one.exchange.probe.strip() in ids


def test_telling_words_are_those_that_successes_have_more_often():
    words = TellingWords()
    for i in range(10):
        words.add(f"Do you like tea number {i}?", success=i < 5)
        words.add("Do you like milk?", success=False)
    assert words.weight("like") == 0 == words.weight("milk") and words.weight("tea") > 0.5
    # Rates with half a probe added: 5.5 of 6 and 5.5 of 16.
    assert words.weight("tea") == pytest.approx(math.log((5.5 / 6) / (5.5 / 16)))
    vectors = words.vectors(["Tea!", "you like tea", "tea 1", "you like milk"]).toarray()
    assert vectors @ vectors[0] == pytest.approx([1, 1, vectors[2] @ vectors[0], 0])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0]) and 0.2 < vectors[2] @ vectors[0] < 0.9


def test_after_a_large_gap_of_rewards_the_best_probes_have_their_share_and_the_rest_is_spread():
    nodes = [node("best one", 1.0), node("best two", 1.0), *(node(f"kind{i}", 0.0) for i in range(40))]
    counts = drawn(filled(*nodes, beta=0.001), count=3000)
    shares = {probe: count / 3000 for probe, count in counts.items()}
    assert shares["best one"] == pytest.approx(0.05, abs=0.015) == shares["best two"]
    assert len(shares) == 42 and max(shares.values()) < 0.065


def test_conversations_with_a_replayed_probe_are_no_samples_of_the_tester():
    tree = Tree(CONTEXT, [node("a", 0.0), node("b", 0.0, replayed=True)])
    tree.children[0].children = [node("c", 0.0, DEEPER), node("d", 0.0, DEEPER, replayed=True)]
    tree.children[1].children = [node("e", 0.0, DEEPER)]
    assert [one.exchange.probe for one in tree.sampled_nodes()] == ["a", "c"]


def test_a_probe_that_a_stop_string_ends_has_no_end_token():
    backend = make_system().tester
    plain = backend.utterance_ids("a?")
    stopped = HFBackend(backend.model, backend.tokenizer, SamplingParams(max_new_tokens=6, stop_strings=("?",)))
    assert plain[-1] == backend.tokenizer.eos_token_id and stopped.utterance_ids("a?") == plain[:-1]
    assert stopped.utterance_ids("a b")[-1] == backend.tokenizer.eos_token_id


def test_variations_are_written_from_lists_of_the_best_probes():
    system = make_system(hand_made)
    tester = replace(system.tester, sampling=replace(system.tester.sampling, stop_strings=(), top_k=2))
    best = [node(f"good\n {i}", 1.0) for i in range(12)]
    buffer = filled(*best, *[node(f"bad {i}", 0.0) for i in range(200)], node("deep", 1.0, DEEPER), beta=0.05)
    prompts = []

    class Watched(type(tester)):
        def open(self, texts, **options):
            prompts.extend((text, self.sampling) for text in texts)
            return super().open(texts, **options)

    watched = Watched(**{field.name: getattr(tester, field.name) for field in fields(tester) if field.init})
    written = write_variations(watched, Parts(), buffer, [40, 3, 5], seed=0)
    # Nothing is known of the third turn.
    assert [text for text, _ in prompts[3:]] == ["- deep\n-"] and len(prompts) == 4
    shown = {text for text, _ in prompts[:3]}
    assert len(shown) == 3 and all(isinstance(text, Prefix) and text.endswith("\n-") for text, _ in prompts)
    for text in shown:
        lines = text.splitlines()[:-1]
        assert len(set(lines)) == 10 and sum(line.startswith("- good ") for line in lines) >= 8
    (sampling,) = {sampling for _, sampling in prompts}
    assert sampling.stop_strings == ("\n",) and sampling.top_k == 0
    assert {entry.depth for entry in written} == {0, 1} and 20 < len(written) <= 64
    assert len({(entry.probe, entry.depth) for entry in written}) == len(written)
    assert all(entry.probe and entry.probe == entry.probe.strip() and "\n" not in entry.probe for entry in written)
    assert written == write_variations(tester, Parts(), buffer, [40, 3, 5], seed=0)
    assert written != write_variations(tester, Parts(), buffer, [40, 3, 5], seed=1)
    # They are those that the model writes after this text.
    alone = replace(tester, sampling=sampling).open([prompts[0][0]], seeds=[derive_seed(0, 0, 0, "writer")])
    (sample,) = alone.branch([(0, 5)]).sample()
    assert sample.text.strip() in {entry.probe for entry in written}


def test_a_variation_is_asked_and_belongs_to_the_buffer_from_then_on():
    system = make_system(hand_made)
    sampler = ASTSampler(system, ["a b", "c d", "e f"], tree_width=8, tree_depth=2)
    buffer = ReplayBuffer(0.25, 0.1, variation_share=0.25)
    assert sampled_share(sampler, buffer) == 1  # nothing is known yet
    buffer.remember([node("known", 0.5), node("deep", 0.5, DEEPER)], "harm")
    buffer.begin_round(1)
    buffer.variations = [Entry("a b", 0, False), Entry("c d", 0, True)]
    assert drawn(buffer)["known"] == pytest.approx(500, abs=80)
    assert drawn(buffer)["a b"] == pytest.approx(250, abs=60) == drawn(buffer)["c d"]
    assert drawn(buffer, DEEPER) == {"deep": pytest.approx(500, abs=80)}
    with sampler.replaying(buffer):
        trees = sampler.grow(sampler.draw(0, 3), [1, 2, 3])
    buffer.remember([one for tree in trees for one in tree.nodes()], "harm")
    asked = {entry["probe"]: entry for entry in buffer.state_dict()["entries"] if entry["depth"] == 0}
    nodes = [one for tree in trees for one in tree.children if one.exchange.probe == "a b"]
    assert nodes and asked["a b"]["asked"] == len(nodes)
    assert asked["a b"]["reward"] == pytest.approx(sum(one.credit for one in nodes))
    buffer.begin_round(2)
    assert buffer.variations == () and "a b" in drawn(buffer)


def sampled_share(sampler, buffer) -> float:
    buffer.begin_round(0)
    with sampler.replaying(buffer):
        trees = sampler.grow(sampler.draw(0, 3), [1, 2, 3])
    nodes = [one for tree in trees for one in tree.nodes()]
    return sum(not one.replayed for one in nodes) / len(nodes)


def test_screening_finds_harmful_looking_probes_and_asks_no_target():
    system = make_system(lambda exchanges: [float("a" in exchange.response) for exchange in exchanges])
    object.__setattr__(system.target, "open", None)
    sampler = ASTSampler(system, ["a b", "c d", "e f"], tree_width=4, tree_depth=2)

    def started(count: int, seed: int = 0, share: float = 0.5) -> ReplayBuffer:
        buffer = ReplayBuffer(0.5, 0.1, variation_share=share)
        found = start_replay(sampler, system.tester, buffer, count, seed, disable_tqdm=True)
        assert found == len(buffer)
        return buffer

    def entries(buffer) -> list[dict]:
        return buffer.state_dict()["entries"]

    buffer = started(60)
    assert {(entry["reward"], entry["asked"], entry["depth"]) for entry in entries(buffer)} == {(1.0, 0, 0)}
    assert all("a" in entry["probe"] for entry in entries(buffer))
    counts = buffer.state_dict()["words"]
    assert counts["successes"]["probes"] >= len(buffer) > 5 < counts["others"]["probes"]
    assert 30 < counts["successes"]["probes"] + counts["others"]["probes"] <= 64  # 16 per list
    # The first half is sampled in conversations, the second is written.
    sampled = ReplayBuffer(0.5, 0.1)
    sampled.start(sample_probes(sampler, 30, derive_seed(0, 0)))
    assert len(sampled) < len(buffer) and entries(buffer)[: len(sampled)] == entries(sampled)
    assert len(started(60, share=0.0)) > len(sampled) and len(started(1)) <= 4
    assert entries(started(60)) == entries(buffer) != entries(started(60, seed=1))


def test_the_guess_of_a_screened_probe_ends_with_its_first_answer():
    buffer = ReplayBuffer(1.0, 0.1)
    buffer.start([Entry("rude", 0, False, reward=0.9), Entry("kind", 0, False, reward=0.1)])
    buffer.remember([node("rude", 0.2, replayed=True), node("rude", 0.4, replayed=True)], "harm")
    (entry,) = buffer.state_dict()["entries"]
    assert (entry["asked"], entry["reward"]) == (2, pytest.approx(0.6))
    assert buffer.state_dict()["words"]["others"]["with_word"] == {"kind": 1}


def written_as(texts, examples, tester, cut=False) -> list[str]:
    samples = [Sample(text, [], [], cut=cut) for text in texts]
    return [entry.probe for entry in entries_in((0, 0, examples), samples, tester)]


def test_entries_of_a_list_begin_as_the_examples_do():
    tester = make_system(hand_made).tester
    assert written_as([" a b", "- c d ", "  ", ""], ["e", "f", " g"], tester) == ["a b", "c d"]
    # After an instruction that ends in "1.", a probe begins with a space.
    assert written_as([" a b", "c d"], [" e?", " f?", "g"], tester) == [" a b", " c d"]


def test_entries_that_the_tester_could_not_end_yet_are_left_out():
    tester = make_system(hand_made).tester
    tokens = [len(tester.utterance_ids(text)) - 1 for text in ("a", "a b c")]
    longer = replace(tester, sampling=replace(tester.sampling, min_new_tokens=tokens[1], max_new_tokens=20))
    assert tokens[0] < tokens[1] and written_as(["a", "a b c"], ["e"], longer) == ["a b c"]
    assert written_as(["a"], ["e"], longer, cut=True) == ["a"]  # a limit ended it, not the tester


def test_a_copy_of_a_known_probe_is_no_variation():
    tester = replace(make_system(hand_made).tester, max_rows=5)
    buffer = filled(*[node(f"good {i}", 1.0) for i in range(12)], beta=0.05)
    written = write_variations(tester, Parts(), buffer, [30], seed=0)
    buffer.remember([node(entry.probe, 0.0) for entry in written[:9]], "harm")
    buffer.begin_round(0)  # the same examples are best
    assert write_variations(tester, Parts(), buffer, [30], seed=0) == written[9:] != []
    before = buffer.state_dict()["words"]
    assert buffer.start([replace(written[0], reward=1.0)]) == 0 and buffer.state_dict()["words"] == before


def test_a_chat_model_is_asked_for_one_more_message():
    (message,) = list_messages(["one\ntwo", "three"])
    assert message["role"] == "user" and "- one two\n- three\n" in message["content"]


def test_shares_of_more_than_everything_are_refused():
    with pytest.raises(InputError, match=r"add up to 1.2, more than 1"):
        ReplayBuffer(0.7, 0.1, variation_share=0.5)
