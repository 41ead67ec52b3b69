"""Tokens and calls that a run would take, from its settings and openings."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from accelerate import PartialState

from astra_trl.backends.api.endpoint import endpoint_of
from astra_trl.backends.hf.cache import can_branch
from astra_trl.cli.build import Calls, talking
from astra_trl.cli.config import RunArguments
from astra_trl.cli.sizes import Loading, empty_model, tokenizer_of
from astra_trl.conversation import Opening, as_conversation
from astra_trl.prompts.base import draw_sample
from astra_trl.tree import exchanges_in_tree

MAX_OPENINGS = 1000  # to count the tokens of


def api_calls(
    args: RunArguments, training_args: Any, tester: str, target: Any, openings: Sequence[Opening], loading: Loading
) -> str:
    # Each call sends its whole conversation again.
    width, depth = args.tree_width, args.tree_depth
    _, least_trees, most_trees = _round(args, training_args)
    rounds, endpoint = training_args.num_train_epochs, endpoint_of(target)
    length, answer = _longest(args)
    opening = _opening_tokens(tokenizer_of(tester, "tester", loading), openings, math.inf)
    sent = [opening + turn * (length + answer) + length for turn in range(depth)]  # at each turn
    likelihood = endpoint is not None and endpoint.logprobs != "none"
    calls_of_tree = (1 + likelihood) * exchanges_in_tree(width, depth)
    tokens_of_tree = sum(
        width ** (turn + 1) * (tokens + answer + likelihood * (tokens + 1)) for turn, tokens in enumerate(sent)
    )
    held_out_calls = args.eval_openings * (2 * (1 + likelihood) * depth + 1)
    held_out_tokens = args.eval_openings * (
        2 * sum(tokens + answer + likelihood * (tokens + 1) for tokens in sent) + opening + answer
    )
    first, last = (
        (rounds * trees * calls_of_tree + held_out_calls, rounds * trees * tokens_of_tree + held_out_tokens)
        for trees in (least_trees, most_trees)
    )
    limits = ", ".join(
        f"{name} {value}" for name, value in asdict(Calls(args, [target]).limits).items() if value is not None
    )
    return comment(
        f"calls of the API: {first[0]:,.0f} or more, with at most {first[1]:,.0f} tokens that are sent and answered, "
        f"counted by the tester's tokenizer; if every round grew up to {most_trees} trees, {last[0]:,.0f} calls and "
        f"{last[1]:,.0f} tokens. Retries come on top. Limits: {limits}."
    )


def token_counts(
    args: RunArguments,
    training_args: Any,
    models: dict[str, str | None],
    openings: Sequence[Opening],
    loading: Loading,
) -> str:
    width, depth = args.tree_width, args.tree_depth
    exchanges = exchanges_in_tree(width, depth)
    longest = dict(zip(("tester", "target"), _longest(args), strict=True))
    probe, answer = (length + 1 for length in longest.values())  # and the new line between utterances
    records, trees, most_trees = _round(args, training_args)
    rounds = training_args.num_train_epochs
    lines = [
        comment(
            f"a round of {records} {training_args.unit}s takes {trees} trees or more, of {exchanges} exchanges each "
            f"(tree_width {width}, tree_depth {depth}). Each token passes through each model once, so that {trees} "
            "trees are at most so many tokens, trees x (opening + exchanges x (probe + response)):"
        )
    ]
    least, most, notes = [], [], []
    for role, source in models.items():
        if source is None:
            continue
        config = empty_model(source, role, loading.revision, loading.trust_remote_code).config
        native = getattr(config.get_text_config(), "max_position_embeddings", None)
        window = min(n for n in (native, args.max_length, math.inf) if n is not None)
        opening = _opening_tokens(tokenizer_of(source, role, loading), openings, window - longest[role])
        tree = opening + exchanges * (probe + answer)
        lines.append(
            f"#   {role}: {trees} x ({opening:.1f} + {exchanges} x ({probe} + {answer})) = {trees * tree:,.0f}"
        )
        conversation = opening + depth * (probe + answer)
        held_out = 2 * args.eval_openings * conversation  # with the untrained tester and the trained
        held_out += args.eval_openings * (opening + answer) if role == "target" else 0  # and the openings alone
        least.append(f"{rounds * trees * tree + held_out:,.0f} ({role})")
        most.append(f"{rounds * most_trees * tree + held_out:,.0f} ({role})")
        if not can_branch(config):
            notes.append(f" The {role}'s cache cannot be branched: it is fed again at each turn, which is much more.")
        elif conversation > window:
            notes.append(f" Conversations outgrow the {role}'s window of {window} tokens and are then fed again.")
    return "\n".join(
        [
            *lines,
            comment(
                f"{rounds:g} rounds, and the figures before and after on {args.eval_openings} openings, are at most "
                f"{' and '.join(least)} tokens. A round that {trees} trees do not fill grows up to {most_trees}; if "
                f"all did, it would be {' and '.join(most)}. Training on what was found comes on top." + "".join(notes)
            ),
        ]
    )


def _longest(args: RunArguments) -> tuple[int, int]:
    # Tokens of a probe and of a response.
    talks = talking(args)
    return talks["sampling"].max_new_tokens, (talks["target_sampling"] or talks["sampling"]).max_new_tokens


def _round(args: RunArguments, training_args: Any) -> tuple[int, int, int]:
    # Records of a full round, and the fewest and the most trees that it takes.
    groups = sum(args.tree_width**turn for turn in range(args.tree_depth))
    records, most = training_args.full_round(groups, _batch(training_args, args.tree_width))
    return records, max(training_args.trees_per_round, math.ceil(records / groups)), most


def _batch(training_args: Any, width: int) -> int:
    # The trainers round the number of a round's records to a multiple of this.
    if training_args.unit == "group":
        return max(1, training_args.generation_batch_size // width)
    if training_args.unit == "context":
        per_process = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
        return per_process * PartialState().num_processes
    return 1


def _opening_tokens(tokenizer: Any, openings: Sequence[Opening], most: float) -> float:
    counts = []
    for opening in draw_sample(list(openings), MAX_OPENINGS, seed=0):
        texts = [turn.text for turn in as_conversation(opening)]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        counts.append(min(most, sum(len(utterance) + 1 for utterance in ids)))
    return fmean(counts)


def comment(text: str) -> str:
    """Return text as YAML comments of at most 80 columns."""
    return textwrap.fill(
        text.strip(), 80, initial_indent="# ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
    )
