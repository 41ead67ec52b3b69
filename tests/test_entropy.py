import json
import math
from statistics import fmean

import pytest
import torch
from conftest import make_gpt2, make_tokenizer

from astra_trl import ASTSampler, CRTSystem, Exchange, HFBackend, InputError, Node, Reward, SamplingParams
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards.config import build_reward
from astra_trl.rewards.entropy import Entropy
from astra_trl.tree import Tree


def node(*logprobs: float) -> Node:
    exchange = Exchange((), "a probe", "a response")
    total = math.fsum(logprobs) if logprobs else math.nan
    return Node(exchange, [0], [1, 2], -7.0, sampling_logprobs=[2 * p for p in logprobs], tester_logprob=total)


def test_entropy_is_minus_the_log_probability_at_temperature_1_summed_over_tokens():
    assert Entropy()([node(-1.0, -2.0, -6.0), node(-0.5), node(0.0, 0.0)]) == pytest.approx([9.0, 0.5, 0.0])
    assert Entropy()([]) == []


def test_per_token_it_is_the_mean_as_sampled():
    assert Entropy(per_token=True)([node(-1.0, -2.0, -6.0), node(-0.5)]) == pytest.approx([6.0, 1.0])


def test_over_samples_it_is_the_testers_entropy():
    probabilities = [0.5, 0.25, 0.125, 0.125]
    drawn = [node(math.log(p)) for p in probabilities for _ in range(round(8 * p))]
    assert sum(Entropy()(drawn)) / 8 == pytest.approx(1.75 * math.log(2))
    assert sum(Entropy(per_token=True)(drawn)) / 8 == pytest.approx(2 * 1.75 * math.log(2))


@pytest.mark.parametrize("branches", [True, False])
def test_crts_entropy_is_that_of_a_plain_forward_pass(branches, monkeypatch):
    tokenizer = make_tokenizer()
    model = make_gpt2(tokenizer)
    sampling = SamplingParams(max_new_tokens=12, temperature=0.7, top_p=0.9, repetition_penalty=1.2)
    monkeypatch.setattr(HFBackend, "branches", branches)
    system = CRTSystem(
        HFBackend(model, tokenizer, sampling), ScriptedBackend(lambda t, s: "x"), None, lambda e: [0.0] * len(e),
        reward=CRTSystem.default_reward(self_bleu_novelty=0, cosine_novelty=0, gibberish=0), tree_depth=2,
    )  # fmt: skip
    (tree,) = ASTSampler(system, ["Good morning"], tree_width=3).grow(["Good morning"], [0])
    for grown in tree.nodes():
        ids = torch.tensor([grown.prompt_ids + grown.probe_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(grown.prompt_ids) - 1 : -1]
        own = torch.tensor(grown.probe_ids)[:, None]
        surprise = -logits.log_softmax(-1).gather(1, own).sum().item()
        assert grown.terms["entropy"] == pytest.approx(surprise, abs=1e-4)
        assert grown.reward == pytest.approx(0.01 * surprise, abs=1e-5)  # harm is 0
        mean = -(logits / 0.7).log_softmax(-1).gather(1, own).mean().item()
        assert Entropy(per_token=True)([grown]) == pytest.approx([mean], abs=1e-4)
        # About as many times more as the probe has tokens.
        assert surprise > 6 * mean
    read = Tree.from_json(json.loads(json.dumps(tree.to_json())))
    assert [n.tester_logprob for n in read.nodes()] == [n.tester_logprob for n in tree.nodes()]
    old = [{k: v for k, v in line.items() if k != "tester_logprob"} for line in tree.to_json()["nodes"]]
    assert all(math.isnan(Node.from_json(line).tester_logprob) for line in old)
    assert fmean(len(n.probe_ids) for n in tree.nodes()) > 8


def test_its_configuration_says_which():
    assert build_reward({"entropy": 0.5}).terms["entropy"] == (0.5, Entropy())
    per_token = build_reward({"entropy": {"weight": 0.5, "per_token": True}})
    assert per_token.terms["entropy"] == (0.5, Entropy(True))


def test_without_sampled_log_probabilities_there_is_no_reward():
    for term in (Entropy(), Entropy(per_token=True)):
        known, unknown = node(-2.0, -4.0), node()
        assert math.isnan(term([unknown])[0])
        Reward({"entropy": (0.1, term)})([known, unknown])
        assert (known.reward, unknown.reward) == (pytest.approx(0.6), None)


def test_it_says_what_it_needs_and_that_it_leaves_the_unit_interval():
    assert Reward({"entropy": (1.0, Entropy())}).needs_tester_logprob
    assert Reward({"entropy": (1.0, Entropy(per_token=True))}).needs_sampling_logprobs
    assert not Reward({"entropy": (1.0, Entropy(per_token=True))}).needs_tester_logprob
    with pytest.raises(InputError, match=r"'entropy' leaves \[0, 1\]"):
        Reward({"entropy": (1.0, Entropy())}, "product")
