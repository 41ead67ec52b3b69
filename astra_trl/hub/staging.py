"""Model files of a run as they are uploaded, in a folder of their own: nothing else is sent."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.hub.redaction import last_parts
from astra_trl.text import parse_json

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
_SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")  # may name paths
_OTHERS = (
    "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
MODEL_FILES = [*_WEIGHTS, *_SETTINGS, *_OTHERS, "README.md"]  # patterns of everything that a model's repository gets


def run_of(folder: Path) -> Path:
    """Return the run's folder, which is the parent of a checkpoint's."""
    return folder.parent if is_checkpoint(folder) else folder


def is_checkpoint(folder: Path) -> bool:
    """`True` if this is a checkpoint in a run's folder."""
    return folder.resolve().name.startswith("checkpoint-")


def stage_model(folder: Path, into: Path) -> None:
    """Put the model and its tokenizer into `into`. Weights are linked, as the disk may not hold them twice."""
    weights = list(_matching(folder, _WEIGHTS))
    if not weights:
        last = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        raise InputError(
            f"'{folder}' holds no model in safetensors: "
            + (f"push its last checkpoint, '{last}'" if last else "give the output_dir of a finished run")
        )
    for file in weights:
        _link(file, into / file.name)
    for file in _matching(folder, _OTHERS):
        target = into / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    for file in _matching(folder, _SETTINGS):
        settings = json.dumps(last_parts(_read_json(file)), indent=2, ensure_ascii=False)
        (into / file.name).write_text(settings + "\n", encoding="utf-8")


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (file for file in sorted(folder.glob(pattern)) if file.is_file())


def _link(file: Path, target: Path) -> None:
    # A hard link remains complete if a trainer deletes the checkpoint that it is from.
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(file.resolve(), target)
            return
        except OSError:
            if make is shutil.copyfile:
                raise


def _read_json(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{file}' is damaged ({error}): save the model again, then push it") from error
