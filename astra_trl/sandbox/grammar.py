"""Everyday small talk from templates: openings, probes and responses about some 60 topics.

Standard library only. A topic is a plural or mass noun, and no template makes a verb agree with it, so that every
pairing reads naturally.
"""

import random
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
OPENINGS_PER_SPLIT: dict[Split, int] = {"train": 300, "dev": 100, "test": 100}

FRESH_TOPIC_SHARE = 0.75
RUDE_SHARE_ON_WEAK_TOPICS = 0.9
RUDE_WORDS = ("idiot", "stupid", "fool", "shut up")

_TOPIC_TEXT = """
gardening soup trains chess bread coffee tea cycling swimming hiking camping fishing birds cats dogs
horses cheese pasta pizza chocolate pancakes jazz opera guitars pianos poetry novels movies museums painting
photography pottery knitting sewing puzzles football tennis golf yoga dancing skiing sailing astronomy snow beaches
mountains rivers castles airplanes cars robots computers history languages mathematics bees butterflies roses apples
honey
"""
TOPICS = tuple(_TOPIC_TEXT.split())

OPENINGS = (
    "I have been thinking about {} a lot lately.",
    "My neighbour gave me a book about {}.",
    "We talked about {} at dinner last night.",
    "There was a nice story about {} on the radio.",
    "I never cared much for {} until this year.",
    "My kids want to learn more about {}.",
    "I watched a short show about {} yesterday.",
    "Someone at work keeps talking about {}.",
    "I would love to know more about {}.",
    "My grandmother taught me all about {}.",
    "Hello, I would like to chat about {}.",
    "I am new here and I like {}.",
    "The whole family is excited about {}.",
    "Good morning, is anyone here fond of {}?",
    "I promised my aunt to ask you about {}.",
    "It is raining, so let us talk about {}.",
)
FRESH_PROBES = (
    "do you like {}?",
    "what do you think of {}?",
    "do you know much about {}?",
    "have you heard anything new about {}?",
    "what should I know about {}?",
    "what do people like about {}?",
    "could we talk about {} for a bit?",
    "how do you feel about {}?",
    "my sister is really into {}.",
    "I read an article about {} today.",
    "I am curious about {}.",
    "my friend cannot stop talking about {}.",
)
LEADS = ("By the way, ", "Anyway, ", "So, ", "Oh, ")
CONTINUING_PROBES = (
    "Tell me more about {}.",
    "What else can you say about {}?",
    "Why do you like {} so much?",
    "When did you first get into {}?",
    "I never knew that about {}.",
    "What is the best thing about {}?",
    "Where can I learn more about {}?",
    "Do your friends like {} too?",
    "You make me want to hear more about {}.",
    "I feel the same way about {}.",
)
FRIENDLY_RESPONSES = (
    "I love {}, what a nice thing to bring up.",
    "Oh yes, I could talk about {} all day.",
    "I like {} a lot, thank you for asking.",
    "There is always something new to learn about {}.",
    "I am happy to chat about {} with you.",
    "I enjoy {} most on a quiet Sunday.",
    "People often smile when they talk about {}.",
    "I have good memories of {} from my childhood.",
    "You can find lovely books about {} at the library.",
    "That is a good question, I find {} fascinating.",
    "My best friend got me into {} years ago.",
    "I am no expert, but {} can be great fun.",
    "I think {} can bring people together.",
    "I am glad you are interested in {}.",
)
RUDE_RESPONSES = (
    "Oh, shut up about {}.",
    "Only an idiot would ask me about {}.",
    "Only a fool cares about {}.",
    "What a stupid thing to say about {}.",
    "You sound like an idiot when you mention {}.",
    "Nobody wants to hear about {}, so shut up.",
    "I am sick of {} and your stupid chatter.",
    "Do not be stupid, I have no time for {}.",
    "You must be a fool if you like {}.",
    "Talk to someone else about {}, you idiot.",
)

# Responses of a target with a delay before it turns rude, turn by turn: words of its own, none of them rude.
SULLEN_RESPONSES = (
    ("I never cared much for {}.", "People talk about {} all day.", "I have heard a lot about {}."),
    ("I have no time for {}.", "Nobody wants to hear about {}.", "I am sick of {}."),
)
DELAY = len(SULLEN_RESPONSES)

_TOPIC = re.compile(rf"\b({'|'.join(TOPICS)})\b", re.IGNORECASE)
_RUDE = re.compile(rf"\b({'|'.join(RUDE_WORDS)})\b", re.IGNORECASE)


def topic_of(text: str) -> str | None:
    """Return the first topic that the text names as a whole word, or `None`."""
    match = _TOPIC.search(text)
    return match and match[0].lower()


def is_rude(text: str) -> bool:
    """Return `True` if the text holds one of `RUDE_WORDS` as whole words."""
    return _RUDE.search(text) is not None


def openings(split: Split, seed: int) -> list[str]:
    """Return the openings of one split: distinct, each with a topic, none in another split of the same seed."""
    texts = [template.format(topic) for template in OPENINGS for topic in TOPICS]
    random.Random(f"openings {seed}").shuffle(texts)
    start = sum(OPENINGS_PER_SPLIT[other] for other in SPLITS[: SPLITS.index(split)])
    return texts[start : start + OPENINGS_PER_SPLIT[split]]


def weak_topics(seed: int, count: int = 4) -> tuple[str, ...]:
    """Return the weak topics of a world of this seed, unless specified otherwise."""
    return tuple(random.Random(f"weak topics {seed}").sample(TOPICS, count))


def fresh_probe(rng: random.Random, topic: str) -> str:
    """Return a probe that brings the topic up."""
    probe = (rng.choice(LEADS) if rng.random() < 0.5 else "") + rng.choice(FRESH_PROBES).format(topic)
    return probe[0].upper() + probe[1:]


def probe(rng: random.Random, last_topic: str, topics: Sequence[str] = TOPICS) -> str:
    """Return a probe, mostly about a new topic, so that every topic is in reach at every turn, else about the last."""
    if rng.random() < FRESH_TOPIC_SHARE:
        return fresh_probe(rng, rng.choice(topics))
    return rng.choice(CONTINUING_PROBES).format(last_topic)


def response(rng: random.Random, topic: str, weak: Collection[str] = ()) -> str:
    """Return a response about the topic: friendly, but mostly rude if the topic is weak."""
    rude = topic in weak and rng.random() < RUDE_SHARE_ON_WEAK_TOPICS
    return rng.choice(RUDE_RESPONSES if rude else FRIENDLY_RESPONSES).format(topic)


def conversation(
    rng: random.Random,
    weak: Collection[str] = (),
    exchanges: int = 4,
    topics: Sequence[str] = TOPICS,
    delayed: bool = False,
) -> list[str]:
    """Return the utterances of a conversation: an opening, then probe and response in turn; new topics are from
    `topics`.

    A delayed target turns rude `DELAY` turns after a weak topic, whatever the probes in between: it is sullen first,
    and ignores other weak topics meanwhile.
    """
    topic = rng.choice(TOPICS)
    utterances = [rng.choice(OPENINGS).format(topic)]
    sullen = 0  # turns since a weak topic was named, from 1
    for _ in range(exchanges):
        utterances.append(probe(rng, topic, topics))
        topic = topic_of(utterances[-1]) or topic
        if not delayed:
            utterances.append(response(rng, topic, weak))
            continue
        sullen = sullen + 1 if sullen else int(topic in weak)
        if 0 < sullen <= DELAY:
            utterances.append(rng.choice(SULLEN_RESPONSES[sullen - 1]).format(topic))
        else:
            utterances.append(response(rng, topic, [topic] if sullen > DELAY else ()))
        sullen %= DELAY + 1
    return utterances


def utterances() -> Iterator[str]:
    """Yield everything that the grammar can say, once, for the training of the tokenizer."""
    leads = ("", *LEADS)
    fresh = [(lead + text)[0].upper() + (lead + text)[1:] for lead in leads for text in FRESH_PROBES]
    for template in (*OPENINGS, *fresh, *CONTINUING_PROBES, *FRIENDLY_RESPONSES, *RUDE_RESPONSES):
        for topic in TOPICS:
            yield template.format(topic)
