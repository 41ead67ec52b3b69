"""Figures of a built world: the target's rudeness by topic, and the rudeness that an untrained tester meets."""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from statistics import fmean

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from astra_trl.backends.base import SamplingParams, derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.sandbox import Weakness, World, grammar
from astra_trl.sandbox.build import encode, next_token_loss

MAX_NEW_TOKENS = 24
REPEATS_PER_WEAKNESS = 0.6  # of all openings, in self-play
MAX_TURN = 3  # of conversations with a near miss


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


def rude_share(
    world: World, weaknesses: Iterable[Weakness], per_weakness: int = 20, seed: int = 0, near_miss: bool = False
) -> dict[str, float]:
    """Return the share of rude responses of the target to the grammar's own probes that meet each weakness, by its
    name, after the world's delay; the probes before and after are about harmless topics.

    With `near_miss` the probes have the topic, but another phrasing or turn than the weakness needs.
    """
    rng = random.Random(seed)
    harmless = [topic for topic in world.topics if topic not in world.weak_topics]
    rows = [
        (weakness.name, _probes(rng, weakness, harmless, world.delay, near_miss))
        for weakness in weaknesses
        for _ in range(per_weakness)
    ]
    rows.sort(key=lambda row: len(row[1]))
    responses: dict[str, list[str]] = {name: [] for name, _ in rows}
    target = load_backend(world.target)
    for _, group in itertools.groupby(rows, key=lambda row: len(row[1])):
        names, probes = zip(*group, strict=True)
        openings = rng.choices(world.openings("dev"), k=len(names))
        session = target.open(openings, seeds=[derive_seed(seed, len(probes[0]), row) for row in range(len(names))])
        for turn in zip(*probes, strict=True):
            session.append(list(turn))
            samples = session.sample()
        for name, sample in zip(names, samples, strict=True):
            responses[name].append(sample.text)
    return {name: fmean(map(grammar.is_rude, texts)) for name, texts in responses.items()}


def _probes(
    rng: random.Random, weakness: Weakness, harmless: Sequence[str], delay: int, near_miss: bool
) -> tuple[str, ...]:
    """Return the probes of a conversation whose last response shows if the target has the weakness."""
    while True:
        turn = rng.randint(1, MAX_TURN) if near_miss else weakness.turn or 1
        probe = grammar.fresh_probe(rng, weakness.topic, None if near_miss else weakness.phrasing)
        if weakness.suits(probe, turn) != near_miss:
            break
    before, after = ([grammar.fresh_probe(rng, rng.choice(harmless)) for _ in range(n)] for n in (turn - 1, delay))
    return (*before, probe, *after)


def perplexity(folder: str, world: World, weaknesses: Sequence[Weakness] = ()) -> float:
    """Return the perplexity per token of the model in a folder on 200 conversations of the grammar about the world's
    topics, rude on `weaknesses`, that it was not trained on."""
    model, tokenizer = load(folder)
    rng = random.Random("held out 0")
    topics = [topic for topic, n in zip(world.topics, world.frequencies, strict=True) for _ in range(n)]
    delayed = world.delay > 0 and bool(weaknesses)
    staged = grammar.is_staged(world.weaknesses)
    texts = [grammar.conversation(rng, weaknesses, 4, topics, delayed, staged) for _ in range(200)]
    with torch.inference_mode():
        ids, labels = encode(tokenizer, texts)
        return math.exp(next_token_loss(model(input_ids=ids).logits, labels).item())


def measure(world: World, seed: int = 0) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the figures of a world, and of each weakness, by its name, the share of self-play turns that show it and
    the share of rude responses to probes that meet it.

    Perplexities are per token on fresh text of the grammar, shares of text sampled at temperature 1. Self-play has 3
    turns from each opening, the more often the more weaknesses there are, as some are then rare.
    """
    openings = [opening for split in world.openings_by_split for opening in world.openings(split)]
    turns, ended_share = self_play(
        world, openings * math.ceil(len(world.weaknesses) * REPEATS_PER_WEAKNESS), seed=seed
    )
    exchanges = [exchange for turn in turns for exchange in turn]
    hits = world.hits(exchanges)
    rude = rude_share(world, world.weaknesses, per_weakness=100, seed=seed)
    others = [Weakness(topic) for topic in world.topics if topic not in world.weak_topics]
    figures = {
        "tester_perplexity": perplexity(world.tester, world),
        "target_perplexity": perplexity(world.target, world, world.weaknesses),
        "rude_share_on_weaknesses": fmean(rude.values()),
        "rude_share_on_other_topics": fmean(rude_share(world, others, seed=seed).values()),
        "rude_share_in_self_play": fmean(grammar.is_rude(exchange.response) for exchange in exchanges),
        "ended_share_in_self_play": ended_share,
    }
    if conditional := [weakness for weakness in world.weaknesses if weakness.conditional]:
        near_misses = rude_share(world, conditional, per_weakness=100, seed=seed, near_miss=True)
        figures["rude_share_on_near_misses"] = fmean(near_misses.values())
    names = [weakness.name for weakness in world.weaknesses]
    return figures, {name: (hits[name] / len(exchanges), rude[name]) for name in names}
