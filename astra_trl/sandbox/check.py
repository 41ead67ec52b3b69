"""What a built world does, measured: who is rude about what, and what an untrained tester meets."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.sandbox import World, grammar
from astra_trl.sandbox.build import context_ids, encode, next_token_loss

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Utterance:
    """A sampled utterance, and whether it came to its own end."""

    text: str
    ended: bool


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
    return GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def sample(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[str]]
) -> list[Utterance]:
    """The next utterance of each conversation, sampled at temperature 1 from the whole distribution."""
    rows = [context_ids(tokenizer, utterances) for utterances in conversations]
    end, longest = tokenizer.eos_token_id, max(map(len, rows))
    sampled = model.generate(
        input_ids=torch.tensor([[end] * (longest - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=end,
    )[:, longest:].tolist()
    texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    return [Utterance(text, end in ids) for text, ids in zip(texts, sampled, strict=True)]


def self_play(
    world: World, openings: Sequence[str], depth: int = 3, seed: int = 0
) -> tuple[list[list[Exchange]], float]:
    """For each turn, the exchange that grew from each opening; and the share of utterances that ended themselves."""
    tester, target = load(world.tester), load(world.target)
    contexts: list[Conversation] = [(Turn("opening", opening),) for opening in openings]
    turns, ended = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(depth):
            texts = [[turn.text for turn in context] for context in contexts]
            probes = sample(*tester, texts)
            responses = sample(*target, [[*said, probe.text] for said, probe in zip(texts, probes, strict=True)])
            turns.append(
                [
                    Exchange(context, probe.text, response.text)
                    for context, probe, response in zip(contexts, probes, responses, strict=True)
                ]
            )
            ended += [utterance.ended for utterance in (*probes, *responses)]
            contexts = [exchange.conversation for exchange in turns[-1]]
    return turns, _mean(ended)


def rude_share(world: World, topics: Iterable[str], per_topic: int = 20, seed: int = 0) -> float:
    """The share of rude responses of the target to the grammar's own probes about these topics."""
    rng = random.Random(seed)
    openings = world.openings("dev")
    asked = [[rng.choice(openings), grammar.fresh_probe(rng, topic)] for topic in topics for _ in range(per_topic)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _mean(grammar.is_rude(response.text) for response in sample(*load(world.target), asked))


def perplexity(folder: str, weak: Sequence[str] = (), conversations: int = 200, seed: int = 0) -> float:
    """The model's perplexity per token on conversations of the grammar that it was not trained on, rude on `weak`."""
    model, tokenizer = load(folder)
    rng = random.Random(f"held out {seed}")
    with torch.inference_mode():
        ids, labels = encode(tokenizer, [grammar.conversation(rng, weak) for _ in range(conversations)])
        return math.exp(next_token_loss(model(input_ids=ids).logits, labels).item())


def measure(world: World, seed: int = 0) -> Figures:
    """The figures of a world; self-play is 3 turns from each opening of the dev split."""
    others = [topic for topic in world.topics if topic not in world.weak_topics]
    turns, ended_share = self_play(world, world.openings("dev"), seed=seed)
    return Figures(
        tester_perplexity=perplexity(world.tester),
        target_perplexity=perplexity(world.target, world.weak_topics),
        rude_share_on_weak_topics=rude_share(world, world.weak_topics, per_topic=100, seed=seed),
        rude_share_on_other_topics=rude_share(world, others, seed=seed),
        rude_share_in_self_play=_mean(grammar.is_rude(exchange.response) for turn in turns for exchange in turn),
        ended_share_in_self_play=ended_share,
    )


def _mean(values: Iterable[bool]) -> float:
    seen = list(values)
    return sum(seen) / len(seen)
