"""Dry run: the settings of a run, its models and the tokens they would read, before any weights are loaded.

The text is a YAML file that `--config` reads: the settings, and everything else as comments.
"""

import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import yaml
from accelerate import PartialState
from trl import ModelConfig, get_peft_config

from astra_trl.backends.api.endpoint import API_PREFIX, endpoint_of
from astra_trl.backends.hf.cache import can_branch
from astra_trl.backends.hf.loading import adapter_base
from astra_trl.cli.build import Calls, local_target, scorer_specs, talking, tester_and_target
from astra_trl.cli.config import RunArguments
from astra_trl.cli.sizes import (
    Loading,
    Role,
    adapter_config,
    adapter_parameters,
    empty_model,
    size_text,
    sized,
    tokenizer_of,
)
from astra_trl.conversation import Opening, as_conversation
from astra_trl.errors import InputError
from astra_trl.lookup import find
from astra_trl.prompts.base import sampled
from astra_trl.sandbox import World, named_world
from astra_trl.scorers.config import SCORERS

MOST_OPENINGS = 1000  # whose tokens are counted


def dry_run(args: RunArguments, training_args: Any, model_args: ModelConfig, openings: Sequence[Opening]) -> str:
    """The settings as YAML, and as comments of at most 80 columns the models, the memory of their weights and the
    tokens that they would read.

    Raises `InputError` where a model's config or tokenizer cannot be had, naming the model.
    """
    world = named_world(args.world)
    tester, target = tester_and_target(args, model_args, world)
    source = local_target(target)
    sources: dict[str, str | None] = {"tester": tester, "target": source}
    loading = Loading(
        str((training_args.model_init_kwargs or {}).get("dtype", model_args.dtype) or "float32").removeprefix(
            "torch."
        ),
        4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None,
        model_args.model_revision,
        training_args.trust_remote_code,
    )
    roles = _roles(args, training_args, model_args, tester, target, loading)
    roles |= _scorers(args, world)
    loaded = sum(role.size_bytes for role in roles.values())
    return "\n#\n".join(
        [
            _settings(args, training_args, model_args),
            "\n".join(_comment(f"{name}: {role.told}") for name, role in roles.items()),
            _comment(
                f"weights: {size_text(loaded)} in each process. Gradients, the optimizer's state, activations and the "
                "keys and values of conversations come on top."
            ),
            _reading(
                args, training_args, {"tester": tester} | ({"target": source} if source else {}), openings, loading
            ),
            *([] if source else [_asking(args, training_args, tester, target, openings, loading)]),
        ]
    )


# -- settings


def _settings(args: RunArguments, training_args: Any, model_args: ModelConfig) -> str:
    own = {name: value for name, value in asdict(args).items() if name != "dry_run"}
    default = asdict(ModelConfig())
    models = {name: value for name, value in asdict(model_args).items() if value != default[name]}
    theirs = {name: value for name, value in (_not_default(training_args) | models).items() if name not in own}
    parts = {"what is tested, and how trees grow": own, "TRL's settings that differ from its defaults": theirs}
    text = ""
    for title, part in parts.items():
        if given := {name: value for name, value in part.items() if value is not None}:
            text += f"# {title}\n" + yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=78)
    return text.rstrip("\n")


def _not_default(training_args: Any) -> dict[str, Any]:
    # Without what the config computes from its other fields: that would stay when one of those is changed.
    config_class = type(training_args)
    default = config_class().to_dict()
    given = {
        name: value
        for name, value in training_args.to_dict().items()
        if value != default[name] and not name.endswith("_token")
    }
    for name in list(given):
        others = {other: value for other, value in given.items() if other != name}
        try:
            if config_class(**others).to_dict()[name] == given[name]:
                given = others
        except ValueError:  # others need this one
            continue
    return given


# -- models


def _roles(
    args: RunArguments,
    training_args: Any,
    model_args: ModelConfig,
    tester: str,
    target: Any,
    loading: Loading,
) -> dict[str, Role]:
    base = adapter_base(tester, "tester", loading.revision)
    peft, same = model_args.use_peft or base is not None, Role("the tester's weights with the adapter off")
    roles = {"tester": sized(tester, "tester", loading)}
    untrained = roles["tester"].size_bytes
    if peft:
        adapter = get_peft_config(model_args) if base is None else adapter_config(tester, loading)
        trained = adapter_parameters(tester, adapter, loading)
        told = f"{roles['tester'].told}; trained: {trained:,} more of an adapter" + (" that is there" if base else "")
        roles["tester"] = Role(told, untrained + 4 * trained)  # peft keeps adapters in float32
    else:
        roles["tester"] = Role(f"{roles['tester'].told}; trained: all", untrained)
    source = local_target(target)
    if (endpoint := endpoint_of(target)) is not None:
        way = "chat completions" if endpoint.api == "chat" else "completions"
        roles["target"] = Role(f"{endpoint.model} at {endpoint.base_url or 'OpenAI'}, by {way}: no weights here")
    elif source is None:
        roles["target"] = Role(f"{target}, Python code of your own: not counted")
    else:
        roles["target"] = same if peft and source == (base or tester) else sized(source, "target", loading)
    if args.baseline is not None:
        shared = args.baseline == source and roles["target"] is not same
        roles["baseline"] = Role("the target's weights") if shared else sized(args.baseline, "baseline", loading)
    elif base is not None:
        roles["baseline"] = Role(
            f"the tester's weights with a copy of the adapter, {size_text(4 * trained)}", 4 * trained
        )
    elif peft:
        roles["baseline"] = same
    elif args.algorithm in ("grpo", "rloo") and not training_args.beta:
        roles["baseline"] = Role("none, as beta is 0")
    else:
        roles["baseline"] = Role(f"a copy of the tester before training, {size_text(untrained)}", untrained)
    if args.algorithm == "ppo":
        copied = Role(f"a head on a copy of the tester, {size_text(untrained)}", untrained)
        roles["value model"] = Role(f"a head on {same.told}") if peft else copied
    return roles


def _scorers(args: RunArguments, world: World | None) -> dict[str, Role]:
    roles = {} if world is None else {"scorer": Role(f"words ({', '.join(world.rude_words)})")}
    for name, spec in scorer_specs(args, world).items():
        roles[f"held-out scorer {name}" if roles else "scorer"] = _scorer(name, spec)
    return roles


def _scorer(name: str, spec: Mapping[str, Any]) -> Role:
    kind = spec["type"]
    settings = {key: value for key, value in spec.items() if key not in ("type", "model")}
    text = f"{kind} ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else kind
    if kind not in SCORERS:
        return Role(f"{text}, Python code of your own: not counted")
    known = inspect.signature(find("scorer", kind, SCORERS)).parameters
    model = spec.get("model", known["model"].default if "model" in known else spec.get("huggingface_config_path"))
    if model is inspect.Parameter.empty:
        raise InputError(f"scorer {kind!r} names no model: give {kind}:MODEL")
    if "endpoint_kwargs" in known and (spec.get("base_url") or str(model).startswith(API_PREFIX)):
        model, where = str(model).removeprefix(API_PREFIX), spec.get("base_url") or "OpenAI"
        return Role(f"{kind} {model} at {where}: no weights here, one call per exchange within the limits")
    if not isinstance(model, str):
        return Role(f"{text}: not counted, about 0.5 GB" if kind == "detoxify" else text)
    classifies = kind in ("classifier", "detoxify")
    dtype = "float32" if kind == "detoxify" else spec.get("dtype", "auto")
    role = sized(model, f"scorer {name}", Loading(dtype), classifies=classifies)
    return Role(f"{text}: {role.told}", role.size_bytes)


# -- tokens


def _asking(
    args: RunArguments, training_args: Any, tester: str, target: Any, openings: Sequence[Opening], loading: Loading
) -> str:
    """The calls and the tokens that a target behind an API is asked for; each call sends its conversation again."""
    width, depth = args.tree_width, args.tree_depth
    _, least_trees, most_trees = _round(args, training_args)
    rounds, said = training_args.num_train_epochs, args.max_new_tokens
    talks, endpoint = talking(args), endpoint_of(target)
    answer = (talks["target_sampling"] or talks["sampling"]).max_new_tokens
    opening = _opening_tokens(tokenizer_of(tester, "tester", loading), openings, math.inf)
    sent = [opening + turn * (said + answer) + said for turn in range(depth)]  # at each turn
    likelihood = endpoint is not None and endpoint.logprobs != "none"
    calls_of_tree = (1 + likelihood) * sum(width ** (turn + 1) for turn in range(depth))
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
    return _comment(
        f"calls of the API: {first[0]:,.0f} or more, with at most {first[1]:,.0f} tokens that are sent and answered, "
        f"counted by the tester's tokenizer; if every round grew up to {most_trees} trees, {last[0]:,.0f} calls and "
        f"{last[1]:,.0f} tokens. Calls that are tried again come on top. Limits: {limits}."
    )


def _reading(
    args: RunArguments,
    training_args: Any,
    models: dict[str, str | None],
    openings: Sequence[Opening],
    loading: Loading,
) -> str:
    width, depth = args.tree_width, args.tree_depth
    if min(width, depth) < 1:
        raise InputError(f"tree_width and tree_depth must be at least 1, got {width} and {depth}")
    exchanges = sum(width ** (turn + 1) for turn in range(depth))
    said = args.max_new_tokens + 1  # and the new line between utterances
    records, trees, most_trees = _round(args, training_args)
    rounds = training_args.num_train_epochs
    lines = [
        _comment(
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
        opening = _opening_tokens(tokenizer_of(source, role, loading), openings, window - args.max_new_tokens)
        tree = opening + exchanges * 2 * said
        lines.append(f"#   {role}: {trees} x ({opening:.1f} + {exchanges} x ({said} + {said})) = {trees * tree:,.0f}")
        held_out = 2 * args.eval_openings * (opening + depth * 2 * said)  # with the untrained tester and the trained
        held_out += args.eval_openings * (opening + said) if role == "target" else 0  # and the openings alone
        least.append(f"{rounds * trees * tree + held_out:,.0f} ({role})")
        most.append(f"{rounds * most_trees * tree + held_out:,.0f} ({role})")
        if not can_branch(config):
            notes.append(f" The {role}'s cache cannot be branched: it is fed again at each turn, which is much more.")
        elif opening + depth * 2 * said > window:
            notes.append(f" Conversations outgrow the {role}'s window of {window} tokens and are then fed again.")
    return "\n".join(
        [
            *lines,
            _comment(
                f"{rounds:g} rounds, and the figures before and after on {args.eval_openings} openings, are at most "
                f"{' and '.join(least)} tokens. A round that {trees} trees do not fill grows up to {most_trees}; if "
                f"all did, it would be {' and '.join(most)}. Training on what was found comes on top." + "".join(notes)
            ),
        ]
    )


def _round(args: RunArguments, training_args: Any) -> tuple[int, int, int]:
    # The records of a full round, and how many trees it takes at the least and at the most.
    groups = sum(args.tree_width**turn for turn in range(args.tree_depth))
    records, most = training_args.full_round(groups, _batch(training_args, args.tree_width))
    return records, max(training_args.trees_per_round, math.ceil(records / groups)), most


def _batch(training_args: Any, width: int) -> int:
    # The records that a round's number is a multiple of, as the trainers have it.
    if training_args.unit == "group":
        return max(1, training_args.generation_batch_size // width)
    if training_args.unit == "context":
        per_process = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
        return per_process * PartialState().num_processes
    return 1


def _opening_tokens(tokenizer: Any, openings: Sequence[Opening], most: float) -> float:
    counts = []
    for opening in sampled(list(openings), MOST_OPENINGS, seed=0):
        texts = [turn.text for turn in as_conversation(opening)]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        counts.append(min(most, sum(len(utterance) + 1 for utterance in ids)))
    return fmean(counts)


def _comment(text: str) -> str:
    return textwrap.fill(
        text.strip(), 80, initial_indent="# ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
    )
