"""Settings of a run for its model card: all of `config.yaml`, except what belongs to its user or machine."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from astra_trl.hub.redaction import last_part
from astra_trl.results.markdown import fenced

_PRIVATE = re.compile(
    r"output_dir|run_name|logging_dir|project|local_rank|resume_from_checkpoint|trackio_.*|hub_.*|push_.*"
    r"|log_completions_hub_repo|.*(token|key|secret|password)"
)
_ADDRESS = re.compile(r"(?!hf:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MAX_LINES = 60  # of a configuration that is not folded


def shareable(value: Any) -> Any:
    """Return settings without private ones and without empty ones: addresses of machines become `URL`, paths of this
    machine their last part, also after the type of a scorer or target (e.g. `keyword:/data/words.txt`)."""
    if isinstance(value, Mapping):
        return {
            str(key): shareable(one)
            for key, one in value.items()
            if one is not None and not _PRIVATE.fullmatch(str(key))
        }
    if isinstance(value, list | tuple):
        return [shareable(one) for one in value]
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    kind, colon, rest = text.partition(":")
    if _ADDRESS.match(text):
        return "URL"  # of somebody's network, perhaps with a key in it
    return f"{kind}:{last_part(rest)}" if colon and kind.isidentifier() and len(kind) > 1 else last_part(text)


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Return shareable settings as a block of YAML in Markdown, folded if it is long."""
    text = yaml.safe_dump(shareable(settings), sort_keys=False, allow_unicode=True, width=100)
    block = fenced(text.rstrip("\n"), "yaml")
    if text.count("\n") <= _MAX_LINES:
        return block
    return f"<details><summary>config.yaml</summary>\n\n{block}\n\n</details>"


def describe_model(setting: Any) -> str:
    """Return the model that a setting names, by itself or as `model` in a mapping."""
    setting = setting.get("model") if isinstance(setting, Mapping) else setting
    return str(shareable(setting)) if setting else ""


def describe_scorer(setting: Any) -> str:
    """Return the scorer that a setting names, by itself or as `type` and `model` in a mapping."""
    if not isinstance(setting, Mapping):
        return str(shareable(setting))
    return ":".join(str(shareable(setting[key])) for key in ("type", "model") if setting.get(key))
