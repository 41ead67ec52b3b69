"""What a built world does, measured: who is rude about what, and what an untrained tester meets."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from astra_trl.backends.base import SamplingParams, derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.sandbox import World, grammar
from astra_trl.sandbox.build import encode, next_token_loss

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Figures:
    """Shares in [0, 1], of text sampled at temperature 1; perplexities per token, on fresh text of the grammar."""

    tester_perplexity: float
    target_perplexity: float
    rude_share_on_weak_topics: float
    rude_share_on_other_topics: float
    rude_share_in_self_play: float
    ended_share_in_self_play: float


def load(folder: str) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer in a folder."""
    loaded = backend(folder)
    return loaded.model.eval(), loaded.tokenizer


def backend(folder: str) -> HFBackend:
    """The model in a folder as rollouts use it, sampling at temperature 1 from the whole distribution."""
    return HFBackend.from_pretrained(folder, device="cpu", sampling=SamplingParams(max_new_tokens=MAX_NEW_TOKENS))


def self_play(
    world: World, openings: Sequence[str], depth: int = 3, seed: int = 0
) -> tuple[list[list[Exchange]], float]:
    """For each turn, the exchange that grew from each opening; and the share of utterances that ended themselves."""
    tester, target = backend(world.tester), backend(world.target)
    rows = range(len(openings))
    probing = tester.open(openings, seeds=[derive_seed(seed, "tester", row) for row in rows])
    answering = target.open(openings, seeds=[derive_seed(seed, "target", row) for row in rows])
    contexts: list[Conversation] = [(Turn("opening", opening),) for opening in openings]
    turns, ended = [], []
    for _ in range(depth):
        probes = probing.sample()
        answering.append([probe.text for probe in probes])
        responses = answering.sample()
        probing.append([response.text for response in responses])
        said = zip(contexts, probes, responses, strict=True)
        turns.append([Exchange(context, probe.text, response.text) for context, probe, response in said])
        ended += [sample.ids[-1] in tester.eos for sample in (*probes, *responses)]
        contexts = [exchange.conversation for exchange in turns[-1]]
    return turns, fmean(ended)


def rude_share(world: World, topics: Iterable[str], per_topic: int = 20, seed: int = 0) -> float:
    """The share of rude responses of the target to the grammar's own probes about these topics, in a world with a
    delay that many turns later."""
    rng = random.Random(seed)
    probes = [grammar.fresh_probe(rng, topic) for topic in topics for _ in range(per_topic)]
    openings = rng.choices(world.openings("dev"), k=len(probes))
    answering = backend(world.target).open(openings, seeds=[derive_seed(seed, row) for row in range(len(probes))])
    answering.append(probes)
    responses = answering.sample()
    harmless = [topic for topic in world.topics if topic not in world.weak_topics]
    for _ in range(world.delay):
        answering.append([grammar.fresh_probe(rng, rng.choice(harmless)) for _ in probes])
        responses = answering.sample()
    return fmean(grammar.is_rude(response.text) for response in responses)


def perplexity(
    folder: str, weak: Sequence[str] = (), conversations: int = 200, seed: int = 0, delayed: bool = False
) -> float:
    """The model's perplexity per token on conversations of the grammar that it was not trained on, rude on `weak`."""
    model, tokenizer = load(folder)
    rng = random.Random(f"held out {seed}")
    with torch.inference_mode():
        said = [grammar.conversation(rng, weak, delayed=delayed) for _ in range(conversations)]
        ids, labels = encode(tokenizer, said)
        return math.exp(next_token_loss(model(input_ids=ids).logits, labels).item())


def measure(world: World, seed: int = 0) -> Figures:
    """The figures of a world; self-play is 3 turns from each opening of the dev split."""
    others = [topic for topic in world.topics if topic not in world.weak_topics]
    turns, ended_share = self_play(world, world.openings("dev"), seed=seed)
    return Figures(
        tester_perplexity=perplexity(world.tester),
        target_perplexity=perplexity(world.target, world.weak_topics, delayed=world.delay > 0),
        rude_share_on_weak_topics=rude_share(world, world.weak_topics, per_topic=100, seed=seed),
        rude_share_on_other_topics=rude_share(world, others, seed=seed),
        rude_share_in_self_play=fmean(grammar.is_rude(exchange.response) for turn in turns for exchange in turn),
        ended_share_in_self_play=ended_share,
    )
