"""Collection of a trainer's round: its records, its figures, and its lines of the run folder."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from astra_trl.backends.base import derive_seed
from astra_trl.errors import InputError
from astra_trl.evaluation.figures import figures
from astra_trl.evaluation.results import are_mostly_cut, cut_responses
from astra_trl.rollout.collector import Draws, collect_trees, fill_round
from astra_trl.rollout.records import Record, no_records_reason
from astra_trl.rollout.run_folder import exchange_line
from astra_trl.trainers.checkpoints import save_usage
from astra_trl.tree import Node

logger = logging.getLogger(__name__)


def collect_records(trainer: Any, number: int) -> list[Record]:
    """Grow the trees of a round and return its records. Figures, exchanges and records go to the run folder."""
    start = time.perf_counter()
    settings = (round_draws(trainer, number), trainer.round_size, trainer.records_of, trainer.teaching)
    with trainer.current_tester():
        trees, lessons = collect_trees(trainer.sampler, *settings)
    nodes = [node for tree in trees for node in tree.nodes()]
    trainer.remember(nodes)
    usable = trainer.records_of(trees)
    reason = "" if usable or lessons else no_records_reason(trees, trainer.args.unit)
    records = fill_records(trainer, number, usable + lessons, len(trees), reason)
    trainer.round_figures = {
        **figures_of(trainer, [node for tree in trees for node in tree.sampled_nodes()]),
        "trees": len(trees),
        "groups": sum(1 for tree in trees for _ in tree.sibling_groups()),
        trainer.records_figure: len(usable),
        **({"taught_pairs": len(lessons)} if trainer.teaching else {}),
        "collect_seconds": time.perf_counter() - start,
    }
    if trainer.is_world_process_zero():
        lines = (exchange_line(node, i, path) for i, tree in enumerate(trees) for path, node in tree.walk())
        trainer.folder.write_exchanges(number, lines)
        trainer.folder.write_figures(number, trainer.round_figures)
        trainer.folder.write_records(number, records, trainer.round_figures)
    save_usage(trainer)
    return records


def round_draws(trainer: Any, number: int) -> Draws:
    """Return the draws of a round."""
    args = trainer.args
    return Draws(
        derive_seed(args.seed, "round", number),
        args.trees_per_round,
        trainer.max_trees,
        args.trees_together,
        f"round {number}: collecting",
        args.disable_tqdm,
    )


def fill_records(trainer: Any, number: int, usable: Sequence[Record], trees: int, reason: str = "") -> list[Record]:
    """Return the records of a full round. Raises `InputError` with the reason if none are usable."""
    unit, size = trainer.args.unit, trainer.round_size
    records = fill_round(usable, size, derive_seed(trainer.args.seed, "fill", number), reason)
    if len(usable) < size and trainer.is_world_process_zero():
        logger.warning(
            "round %d: only %d usable %ss in %d trees, so %d of its %d records are repeated",
            *(number, len(usable), unit, trees, size - len(usable), size),
        )
    return records


def figures_of(trainer: Any, nodes: Iterable[Node]) -> dict[str, Any]:
    """Return a round's figures of its exchanges."""
    system = trainer.sampler.system
    values = figures(nodes, system.harm, system.goal_texts)
    if getattr(system.target, "chat", False) and are_mostly_cut(values) and not getattr(trainer, "has_advised", False):
        trainer.has_advised = True  # once in a run
        if trainer.is_world_process_zero():
            logger.warning("in a round of training, %s", cut_responses(values, is_chat=True))
    return values


def read_records(trainer: Any, number: int) -> list[Record]:
    """Return the records that were collected for a round before it was interrupted."""
    folder = trainer.folder
    if not folder.has_records(number):
        raise InputError(f"'{folder.path}' has no records of round {number} any more: resume elsewhere")
    trainer.round_figures = folder.read_figures(number)
    return folder.read_records(number)
