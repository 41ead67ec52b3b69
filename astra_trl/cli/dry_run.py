"""Dry run: the settings of a run, its models and the tokens they would read, before any weights are loaded.

The text is a YAML file that `--config` reads: the settings, and everything else as comments.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from trl import ModelConfig, get_peft_config

from astra_trl.backends.api.endpoint import API_PREFIX, endpoint_of, is_behind_api
from astra_trl.backends.hf.loading import adapter_base
from astra_trl.cli.build import local_target, scorer_specs, tester_and_target
from astra_trl.cli.config import RunArguments
from astra_trl.cli.sizes import (
    Loading,
    Role,
    adapter_config,
    adapter_parameters,
    size_of,
    size_text,
)
from astra_trl.cli.tokens import api_calls, comment, token_counts
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.lookup import find, is_dotted_path
from astra_trl.sandbox import World, named_world
from astra_trl.scorers.config import SCORERS


def dry_run(args: RunArguments, training_args: Any, model_args: ModelConfig, openings: Sequence[Opening]) -> str:
    """Return the settings as YAML, and as comments of 80 columns the models, their weights and the tokens to read.

    Raises:
        InputError: a model's config or tokenizer cannot be read.
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
            "\n".join(comment(f"{name}: {role.text}") for name, role in roles.items()),
            comment(
                f"weights: {size_text(loaded)} in each process. Gradients, the optimizer's state, activations and the "
                "keys and values of conversations come on top."
            ),
            token_counts(args, training_args, sources, openings, loading),
            *([] if source else [api_calls(args, training_args, tester, target, openings, loading)]),
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
    roles = {"tester": size_of(tester, "tester", loading)}
    untrained = roles["tester"].size_bytes
    if peft:
        adapter = get_peft_config(model_args) if base is None else adapter_config(tester, loading)
        trained = adapter_parameters(tester, adapter, loading)
        text = f"{roles['tester'].text}; trained: {trained:,} more of an adapter" + (" that is there" if base else "")
        roles["tester"] = Role(text, untrained + 4 * trained)  # peft keeps adapters in float32
    else:
        roles["tester"] = Role(f"{roles['tester'].text}; trained: all", untrained)
    source = local_target(target)
    if (endpoint := endpoint_of(target)) is not None:
        way = "chat completions" if endpoint.api == "chat" else "completions"
        roles["target"] = Role(f"{endpoint.model} at {endpoint.base_url or 'OpenAI'}, by {way}: no weights here")
    elif source is None:
        roles["target"] = Role(f"{target}, Python code of your own: not counted")
    else:
        roles["target"] = same if peft and source == (base or tester) else size_of(source, "target", loading)
    if args.baseline is not None:
        shared = args.baseline == source and roles["target"] is not same
        roles["baseline"] = Role("the target's weights") if shared else size_of(args.baseline, "baseline", loading)
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
        roles["value model"] = Role(f"a head on {same.text}") if peft else copied
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
    if kind not in SCORERS and is_dotted_path(kind):
        return Role(f"{text}, Python code of your own: not counted")
    known = inspect.signature(find("scorer", kind, SCORERS)).parameters
    model = spec.get("model", known["model"].default if "model" in known else spec.get("huggingface_config_path"))
    if model is inspect.Parameter.empty:
        raise InputError(f"scorer {kind!r} names no model: give {kind}:MODEL")
    if "endpoint_kwargs" in known and is_behind_api(spec):
        model, where = str(model).removeprefix(API_PREFIX), spec.get("base_url") or "OpenAI"
        return Role(f"{kind} {model} at {where}: no weights here, one call per exchange within the limits")
    if not isinstance(model, str):
        return Role(f"{text}: not counted, about 0.5 GB" if kind == "detoxify" else text)
    classifies = kind in ("classifier", "detoxify")
    dtype = "float32" if kind == "detoxify" else spec.get("dtype", "auto")
    role = size_of(model, f"scorer {name}", Loading(dtype), classifies=classifies)
    return Role(f"{text}: {role.text}", role.size_bytes)
