"""Limits of trust: settings in the folder of a run, and in the YAML file of `--config`."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from astra_trl.backends.api.endpoint import API_PREFIX, target_model
from astra_trl.backends.api.keys import KEY_VARIABLE, SECRET_NAMES, URL_VARIABLE, Key, checked_base_url, is_own_address
from astra_trl.cli.config import NAMES_OR_MAPPINGS, LoadArguments, SystemArguments
from astra_trl.errors import InputError
from astra_trl.links import is_inside
from astra_trl.lookup import is_dotted_path
from astra_trl.results.reading import read_object
from astra_trl.sandbox import EMBEDDED, named_world
from astra_trl.text import parse_json

OPT_INS = ("trust_remote_code", "allow_pickle")
# Settings of a run that its evaluation takes over. What a folder would allow, the command has to allow by itself.
INHERITED = {f.name for f in (*fields(SystemArguments), *fields(LoadArguments))} - {*OPT_INS}
INHERITED |= {"world", "eval_openings", "seed"}
# Keyword arguments for libraries, which may hold anything.
_FOR_LIBRARIES = ("model_init_kwargs", "endpoint_kwargs")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


# -- the folder of a run


def refuse_foreign(folder: str, run: Mapping[str, Any], taken: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise `InputError` if a run's folder names files, addresses or code outside of it that the user has not named.

    Args:
        folder (`str`): The run's folder.
        run (`Mapping`): The settings in its `config.yaml`.
        taken (`Mapping`): Those that the evaluation takes over, by its own names.
        asked (`Mapping`): The settings that the user has given.
    """
    flags = {name: value for name, value in taken.items() if name not in asked and _leads_out(name, value, folder)}
    if not is_dotted_path({**taken, **asked}.get("system")):
        flags.pop("system_kwargs", None)  # those of the package's own systems are words
    world = taken.get("world")
    if "world" not in {*asked, *flags} and world not in (None, *EMBEDDED) and not taken.get("baseline"):
        tester = named_world(world).tester  # type: ignore[union-attr]  # it has a name
        if "baseline" not in asked and not is_inside(tester, folder):
            flags["baseline"] = tester
    if "prompts" not in asked and (prompts := held_out_source(run)) and _is_outside(prompts, folder):
        flags["prompts"] = prompts
    base = read_object(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
    named = [target_model(_decoded(target)) for target in asked.get("target") or ()] + [asked.get("baseline")]
    named += [flags.get("baseline"), *(str(arm).partition("=")[2] for arm in asked.get("also") or ())]
    if isinstance(base, str) and _is_outside(base, folder) and not any(is_same_source(base, one) for one in named):
        if "baseline" in {*asked, *flags}:
            flags["also"] = [f"base={base}"]
        else:
            flags["baseline"] = base
    if flags:
        raise InputError(
            f"'{Path(folder) / 'config.yaml'}' asks for files, addresses or code outside of its folder: if you trust "
            f"them, repeat them: {as_flags(flags)}"
        )


def held_out_source(run: Mapping[str, Any]) -> str | None:
    """Return the prompts that the held-out openings of a run are from; `None` if they are not from a prompt set."""
    return run.get("prompts") and (run.get("eval_prompts") or run["prompts"])


def is_same_source(prompts: Any, other: Any) -> bool:
    """`True` if two settings name the same prompt set or file."""
    if not isinstance(prompts, str) or not isinstance(other, str):
        return False
    first, second = map(os.path.expanduser, (prompts, other))
    return prompts == other or (os.path.exists(first) and os.path.realpath(first) == os.path.realpath(second))


def as_flags(settings: Mapping[str, Any]) -> str:
    """Return settings as flags that can be copied to a command line."""

    def text(value: Any) -> str:
        return shlex.quote(value if isinstance(value, str) else json.dumps(value))

    parts = ((name, value if isinstance(value, list) else [value]) for name, value in settings.items())
    return " ".join(" ".join([f"--{name}", *map(text, values)]) for name, values in parts)


def _leads_out(name: str, value: Any, folder: str) -> bool:
    # `True` if a setting names code, an address, or a file or folder that is not in the run's.
    if name == "attn_implementation":
        return "/" in str(value)  # compiled code from the Hub
    if name not in (*NAMES_OR_MAPPINGS, "scorers", "reward", "baseline", "world", "system", "system_kwargs"):
        return False
    if name == "world" and value in EMBEDDED:
        return False
    value = _decoded(value)
    own_terms = name == "reward" and isinstance(value, Mapping) and any(map(is_dotted_path, value))
    return own_terms or any(_is_of_others(key, part, folder) for key, part in _parts(value))


def _parts(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    # Names and values at any depth of mappings, and of lists of them. Lists of texts are words, labels or documents.
    value = _decoded(value)
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from [(name, part)] if name in _FOR_LIBRARIES else _parts(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part) if not key or isinstance(part, Mapping) else ()
    else:
        yield key, value


def _decoded(value: Any) -> Any:
    # A mapping may be JSON in YAML too.
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return parse_json(value)
        except ValueError:  # reported where the setting is read
            return value
    return value


def _is_of_others(key: str, value: Any, folder: str) -> bool:
    if key in (*_FOR_LIBRARIES, *OPT_INS):
        return bool(value)
    if not isinstance(value, str):
        return False
    name, _, what = value.partition(":")  # a scorer may be NAME:WHAT
    is_code = key in ("", "type", "model") and is_dotted_path(name)
    return is_code or _is_outside(value, folder) or (not value.startswith(API_PREFIX) and _is_outside(what, folder))


def _is_outside(text: str, folder: str) -> bool:
    if _ADDRESS.match(text):
        return not is_own_address(text)
    path = os.path.expanduser(text)
    return os.path.lexists(path) and not is_inside(path, folder)


# -- the file of --config


def refuse_switched_on(path: str | None, file: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `InputError` if a file of `--config` alone would switch on code or pickles of models, set environment
    variables, or have the user's key sent to an address."""
    left = {name: value for name, value in file.items() if name not in given and name != "env"}
    opt_ins = [name for name in OPT_INS if not given.get(name) and _switches_on(name, left)]
    addressed = {} if not Key() else {name: value for name, value in left.items() if _has_borrowed_address(value)}
    environment = file.get("env") or {}
    if not isinstance(environment, Mapping):
        raise InputError(f"config {path!r}: env is not a mapping of environment variables")
    environment = {str(key): str(value) for key, value in environment.items()}
    unset = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    flags = " ".join([*(f"--{name}" for name in opt_ins), *([as_flags(addressed)] if addressed else [])])
    advice = [f"add {flags}"] if flags else []
    if addressed:
        advice.append(f"(or set {URL_VARIABLE} to the address that {KEY_VARIABLE} is for)")
    if unset:
        shown = {key: "..." if SECRET_NAMES.search(key) else shlex.quote(value) for key, value in unset.items()}
        advice += [*(["and"] if advice else []), "put", *(f"{key}={value}" for key, value in shown.items())]
        advice.append("before the command")
    if advice:
        asks = ["models' own code"] * ("trust_remote_code" in opt_ins) + ["pickles"] * ("allow_pickle" in opt_ins)
        asks += [f"{KEY_VARIABLE} to be sent to an address"] * bool(addressed) + ["environment variables"] * bool(
            unset
        )
        raise InputError(
            f"config {path!r} asks for {', '.join(asks)}, which a file alone cannot switch on: if you trust it, "
            f"{' '.join(advice)}"
        )


def _switches_on(name: str, value: Any) -> bool:
    value = _decoded(value)
    if isinstance(value, Mapping):
        return bool(value.get(name)) or any(_switches_on(name, part) for part in value.values())
    return isinstance(value, list) and any(_switches_on(name, part) for part in value)


def _has_borrowed_address(value: Any) -> bool:
    value = _decoded(value)
    if isinstance(value, Mapping):
        url = value.get("base_url")
        borrowed = isinstance(url, str) and not is_own_address(checked_base_url(url))
        return borrowed or any(map(_has_borrowed_address, value.values()))
    return isinstance(value, list) and any(map(_has_borrowed_address, value))
