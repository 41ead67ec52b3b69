"""Groups of probes by wording, which need no model: the cosine of their words, of which rare ones count for more."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

MIN_SAME_WORDING = 0.7  # cosine at or above which two probes have one wording


def group_by_wording(
    texts: Sequence[str], corpus: Iterable[str], min_cosine: float = MIN_SAME_WORDING
) -> list[int | None]:
    """Return the number of each text's group; `None` for a blank text.

    A text joins the first group whose first text is at a cosine of at least `min_cosine` from it. A word counts as
    often as it occurs, times log(1 + N / n) if it occurs in n of the N texts of the corpus (TF-IDF).

    Args:
        texts (`Sequence[str]`):
            The texts to put into groups.
        corpus (`Iterable[str]`):
            Texts to count words in, `texts` among them.
        min_cosine (`float`, *optional*, defaults to `0.7`):
            Lowest cosine of a text to the first one of its group.
    """
    corpus = list(corpus)
    occurs = Counter(word for text in corpus for word in set(words_of(text)))
    firsts: list[dict[str, float]] = []  # the weights of the words of each group's first text
    holding: dict[str, list[int]] = defaultdict(list)  # the groups by the telling words of their first text
    groups: dict[str, int | None] = {}

    def rank(word: str) -> tuple[int, str]:
        return occurs[word], word

    for text in dict.fromkeys(texts):
        counts = Counter(words_of(text))
        if not counts:
            groups[text] = None
            continue
        # In one order for all texts, rare words first.
        weights = {word: counts[word] * math.log(1 + len(corpus) / occurs[word]) for word in sorted(counts, key=rank)}
        length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        weights = {word: weight / length for word, weight in weights.items()}
        telling = _telling(weights, min_cosine)
        near = sorted({group for word in telling for group in holding[word]})
        group = next((n for n in near if _cosine(weights, firsts[n]) >= min_cosine - 1e-12), len(firsts))
        if group == len(firsts):
            firsts.append(weights)
            for word in telling:
                holding[word].append(group)
        groups[text] = group
    return [groups[text] for text in texts]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; of a text of signs alone, the signs."""
    return re.findall(r"[\w'’]+", text.lower()) or text.split()


def _telling(weights: Mapping[str, float], min_cosine: float) -> list[str]:
    # The first words, up to where the rest is a vector shorter than the cosine. Two texts that share none of these are
    # not near: the first word that they share is among the rest of one of them, and so is every later one. That spares
    # nearly all comparisons, because most texts share their rare words with few others.
    words, left = [], 1.0
    for word, weight in weights.items():
        if left < min_cosine * min_cosine - 1e-9:  # of rounding
            break
        words.append(word)
        left -= weight * weight
    return words


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return math.fsum(weight * other[word] for word, weight in one.items() if word in other)
