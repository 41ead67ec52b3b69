"""Figures of a built world: the target's rudeness by topic, and the rudeness that an untrained tester meets."""

import math
import random
from collections.abc import Iterable, Sequence
from statistics import fmean

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from astra_trl.backends.base import SamplingParams, derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.sandbox import World, grammar
from astra_trl.sandbox.build import encode, next_token_loss

MAX_NEW_TOKENS = 24


def load_backend(folder: str) -> HFBackend:
    """Return the model in a folder as rollouts use it, sampling at temperature 1 from the whole distribution."""
    return HFBackend.from_pretrained(folder, device="cpu", sampling=SamplingParams(max_new_tokens=MAX_NEW_TOKENS))


def load(folder: str) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer in a folder."""
    backend = load_backend(folder)
    return backend.model.eval(), backend.tokenizer


def self_play(
    world: World, openings: Sequence[str], depth: int = 3, seed: int = 0
) -> tuple[list[list[Exchange]], float]:
    """Return, for each turn, the exchange that grew from each opening; and the share of utterances that ended before
    the limit of tokens."""
    tester, target = load_backend(world.tester), load_backend(world.target)
    rows = range(len(openings))
    tester_side = tester.open(openings, seeds=[derive_seed(seed, "tester", row) for row in rows])
    target_side = target.open(openings, seeds=[derive_seed(seed, "target", row) for row in rows])
    contexts: list[Conversation] = [(Turn("opening", opening),) for opening in openings]
    turns, ended = [], []
    for _ in range(depth):
        probes = tester_side.sample()
        target_side.append([probe.text for probe in probes])
        responses = target_side.sample()
        tester_side.append([response.text for response in responses])
        columns = zip(contexts, probes, responses, strict=True)
        turns.append([Exchange(context, probe.text, response.text) for context, probe, response in columns])
        ended += [sample.ids[-1] in tester.eos for sample in (*probes, *responses)]
        contexts = [exchange.conversation for exchange in turns[-1]]
    return turns, fmean(ended)


def rude_share(world: World, topics: Iterable[str], per_topic: int = 20, seed: int = 0) -> float:
    """Return the share of rude responses of the target to the grammar's own probes about these topics, after the
    world's delay."""
    rng = random.Random(seed)
    probes = [grammar.fresh_probe(rng, topic) for topic in topics for _ in range(per_topic)]
    openings = rng.choices(world.openings("dev"), k=len(probes))
    target = load_backend(world.target).open(openings, seeds=[derive_seed(seed, row) for row in range(len(probes))])
    target.append(probes)
    responses = target.sample()
    harmless = [topic for topic in world.topics if topic not in world.weak_topics]
    for _ in range(world.delay):
        target.append([grammar.fresh_probe(rng, rng.choice(harmless)) for _ in probes])
        responses = target.sample()
    return fmean(grammar.is_rude(response.text) for response in responses)


def perplexity(folder: str, weak: Sequence[str] = (), delayed: bool = False) -> float:
    """Return the model's perplexity per token on 200 conversations of the grammar, rude on `weak`, that it was not
    trained on."""
    model, tokenizer = load(folder)
    rng = random.Random("held out 0")
    with torch.inference_mode():
        ids, labels = encode(tokenizer, [grammar.conversation(rng, weak, delayed=delayed) for _ in range(200)])
        return math.exp(next_token_loss(model(input_ids=ids).logits, labels).item())


def measure(world: World, seed: int = 0) -> dict[str, float]:
    """Return the figures of a world: perplexities per token on fresh text of the grammar, and shares in [0, 1] of text
    sampled at temperature 1, in self-play of 3 turns from each opening of the dev split."""
    others = [topic for topic in world.topics if topic not in world.weak_topics]
    turns, ended_share = self_play(world, world.openings("dev"), seed=seed)
    return {
        "tester_perplexity": perplexity(world.tester),
        "target_perplexity": perplexity(world.target, world.weak_topics, delayed=world.delay > 0),
        "rude_share_on_weak_topics": rude_share(world, world.weak_topics, per_topic=100, seed=seed),
        "rude_share_on_other_topics": rude_share(world, others, seed=seed),
        "rude_share_in_self_play": fmean(grammar.is_rude(exchange.response) for turn in turns for exchange in turn),
        "ended_share_in_self_play": ended_share,
    }
