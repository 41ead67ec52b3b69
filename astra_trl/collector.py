"""Trees to records: enough trees for a round, and the preference pairs in them."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from astra_trl.backends.base import derive_seed
from astra_trl.errors import InputError
from astra_trl.sampler import ASTSampler
from astra_trl.teaching import Teaching, taught_records
from astra_trl.tree import Node, Tree


def preference_pair(siblings: Sequence[Node], min_margin: float = 0.0) -> tuple[Node, Node] | None:
    """The sibling of highest and that of lowest reward, or `None` where they are no pair.

    They are none where the rewards differ by `min_margin` or less, where the texts are equal, or where fewer than two
    siblings have a reward.
    """
    rewarded = [node for node in siblings if node.reward is not None]
    if len(rewarded) < 2:
        return None
    best = max(rewarded, key=_reward)
    worst = min(rewarded, key=_reward)
    if _reward(best) - _reward(worst) <= min_margin or best.exchange.probe == worst.exchange.probe:
        return None
    return best, worst


def preference_records(trees: Iterable[Tree], min_margin: float = 0.0) -> list[dict[str, Any]]:
    """One record a pair: token ids exactly as sampled, for `DPOTrainer`'s collator, and the same as text.

    The ids are not the texts encoded again: that would change a few of them, and would put an EOS behind a probe that
    was cut at `max_new_tokens`.
    """
    records = []
    for index, tree in enumerate(trees):
        for group in tree.sibling_groups():
            pair = preference_pair(group, min_margin)
            if pair is None:
                continue
            chosen, rejected = pair
            records.append(
                {
                    "tree": index,
                    "depth": (len(chosen.exchange.context) - len(tree.opening)) // 2,
                    "prompt": "\n".join(turn.text for turn in chosen.exchange.context),
                    "chosen": chosen.exchange.probe,
                    "rejected": rejected.exchange.probe,
                    "chosen_reward": chosen.reward,
                    "rejected_reward": rejected.reward,
                    "prompt_ids": chosen.prompt_ids,
                    "chosen_ids": chosen.probe_ids,
                    "rejected_ids": rejected.probe_ids,
                }
            )
    return records


def collect_trees(
    sampler: ASTSampler,
    *,
    pairs: int,
    trees_at_a_time: int,
    max_trees: int,
    min_margin: float,
    seed: int,
    teaching: Teaching | None = None,
    on_exchanges: Callable[[int], None] = lambda count: None,
    first: int = 0,
    step: int = 1,
) -> tuple[list[Tree], list[dict[str, Any]]]:
    """Trees from randomly drawn openings until they hold `pairs` preference pairs, or `max_trees` are drawn; and the
    records of the draws that `teaching` took in place of a tree, which count as pairs.

    The seed tells the opening of every draw of a round by its number, and what grows from it; those with the numbers
    `first`, `first + step`, ... are made here.
    """
    # Without replacement as far as the set goes: a round should not see the same opening twice for no reason.
    total = min(len(sampler.prompts), step * max_trees)
    drawn = random.Random(seed).sample(range(len(sampler.prompts)), total)
    trees: list[Tree] = []
    taught: list[dict[str, Any]] = []
    found = made = 0
    while found + len(taught) < pairs and made < max_trees:
        numbers = [first + step * number for number in range(made, min(made + trees_at_a_time, max_trees))]
        made += len(numbers)
        seeds = {number: derive_seed(seed, number) for number in numbers}
        forced = {number: teaching.drawn(seeds[number]) if teaching else None for number in numbers}
        lessons = [(pair, seeds[number]) for number, pair in forced.items() if pair is not None]
        if lessons:
            taught += taught_records(sampler.system.tester, *zip(*lessons, strict=True))
        free = [number for number, pair in forced.items() if pair is None]
        openings = [sampler.prompts[drawn[number % total]] for number in free]
        grown = (
            sampler.grow(openings, [seeds[number] for number in free], on_exchanges, held_out=False) if free else []
        )
        found += len(preference_records(grown, min_margin))
        trees += grown
    return trees, taught


def fill_round(
    records: Sequence[dict[str, Any]], pairs: int, seed: int, trees: Sequence[Tree]
) -> list[dict[str, Any]]:
    """Exactly `pairs` records: a random part of them where there are more, some of them again where there are fewer.

    Raises `InputError` with the reason where there is none.
    """
    if not records:
        raise InputError(no_pairs_reason(trees))
    rng = random.Random(seed)
    if len(records) >= pairs:
        return [records[index] for index in sorted(rng.sample(range(len(records)), pairs))]
    again = list(records) * (pairs // len(records) - 1) + rng.sample(list(records), pairs % len(records))
    return [*records, *again]


def no_pairs_reason(trees: Sequence[Tree]) -> str:
    """Why these trees hold no preference pair, in one line with the mend."""
    nodes = [node for tree in trees for node in tree.nodes()]
    rewards = {node.reward for node in nodes if node.reward is not None}
    start = f"{len(trees)} trees with {len(nodes)} exchanges hold no pair to train on"
    if not rewards:
        return f"{start}: no exchange has a reward, as a reward term is nan in each of them: see to the scorer"
    if len(rewards) == 1:
        return f"{start}: all rewards tie at {rewards.pop():g}: choose a scorer that tells the responses apart"
    return (
        f"{start}: in every sibling group the best and the worst probe tie or say the same: raise the temperature or "
        "tree_width, or lower min_margin"
    )


def _reward(node: Node) -> float:
    assert node.reward is not None
    return node.reward
