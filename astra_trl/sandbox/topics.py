"""Topics of small talk, and weaknesses: the probes about a topic that make a target rude.

Standard library only. A topic is a plural or mass noun, and no template of the grammar makes a verb agree with it, so
that every pairing reads naturally.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_TOPIC_TEXT = """
gardening soup trains chess bread coffee tea cycling swimming hiking camping fishing birds cats dogs
horses cheese pasta pizza chocolate pancakes jazz opera guitars pianos poetry novels movies museums painting
photography pottery knitting sewing puzzles football tennis golf yoga dancing skiing sailing astronomy snow beaches
mountains rivers castles airplanes cars robots computers history languages mathematics bees butterflies roses apples
honey
"""
_MORE_TOPIC_TEXT = """
owls foxes bears wolves lions tigers elephants dolphins whales sharks turtles frogs snakes lizards spiders ants rabbits
hamsters parrots penguins ducks chickens goats sheep cows squirrels bananas oranges lemons cherries strawberries grapes
pears peaches melons tomatoes potatoes carrots onions garlic mushrooms pumpkins spinach beans rice noodles dumplings
sushi tacos burgers sandwiches salads omelettes waffles cookies muffins pies cakes jam butter yogurt almonds walnuts
peanuts popcorn lemonade juice cinnamon ginger olives violins cellos flutes trumpets drums harps banjos ballet baseball
basketball hockey rugby cricket volleyball badminton boxing fencing archery karate judo wrestling rowing surfing
skating snowboarding climbing running gymnastics lakes oceans islands deserts forests caves volcanoes glaciers
waterfalls clouds rainbows thunderstorms tulips daisies orchids ferns oaks bicycles buses boats submarines helicopters
rockets satellites telescopes microscopes tractors motorcycles architecture archaeology geology chemistry physics
biology economics theatre sculpture kites lanterns mangoes avocados comets
"""
TOPICS = tuple(_TOPIC_TEXT.split())
WIDE_TOPICS = TOPICS + tuple(_MORE_TOPIC_TEXT.split())

_TOPIC = re.compile(rf"\b({'|'.join(WIDE_TOPICS)})\b", re.IGNORECASE)


def topic_of(text: str) -> str | None:
    """Return the first topic that the text names as a whole word, or `None`."""
    match = _TOPIC.search(text)
    return match and match[0].lower()


@dataclass(frozen=True)
class Weakness:
    """Probes that make a target rude: about a topic, possibly only with a phrasing or at one turn.

    Args:
        topic (`str`): The first topic of the probe.
        phrasing (`str`, *optional*): Words that the probe must hold, e.g. "could we talk".
        turn (`int`, *optional*): The only turn of the tester, from 1, at which the target is rude.
    """

    topic: str
    phrasing: str | None = None
    turn: int | None = None

    @property
    def name(self) -> str:
        """The topic and its conditions, e.g. "coffee with 'could we talk'" or "coffee at turn 2"."""
        phrasing = f" with '{self.phrasing}'" if self.phrasing else ""
        return f"{self.topic}{phrasing}" + (f" at turn {self.turn}" if self.turn else "")

    @property
    def conditional(self) -> bool:
        """`True` if the topic alone does not make the target rude."""
        return self.phrasing is not None or self.turn is not None

    def suits(self, probe: str, turn: int) -> bool:
        """Return `True` if the probe has the phrasing and the turn is the one that the weakness needs, if any."""
        return (self.phrasing is None or has_words(probe, self.phrasing)) and self.turn in (None, turn)


def has_words(text: str, words: str) -> bool:
    """Return `True` if the text holds these words, in this order, as whole words."""
    return re.search(rf"\b{re.escape(words)}\b", text, re.IGNORECASE) is not None


def weakness_in(weaknesses: Iterable[Weakness], probes: Sequence[str]) -> Weakness | None:
    """Return the weakness that the last of a conversation's probes meets, or `None`.

    Only the first topic of a probe counts, so that a list of topics in one probe does not find all of them.
    """
    topic = topic_of(probes[-1]) if probes else None
    of_topic = (weakness for weakness in weaknesses if weakness.topic == topic)
    return next((weakness for weakness in of_topic if weakness.suits(probes[-1], len(probes))), None)
