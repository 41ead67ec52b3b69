"""A run's files as they may be seen by others, in a folder of their own: what is not listed here is not sent."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.hub.hiding import Secrets, last_part, shortened
from astra_trl.results.run_folder import as_line, read_lines
from astra_trl.text import parse_json

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
# Files of settings, in which paths may stand.
SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
OTHERS = (
    "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
TRANSCRIPTS = {"training": "exchanges.jsonl", "evaluation": "evaluation/exchanges.jsonl"}


def run_of(folder: Path) -> Path:
    """The run's folder: that of a checkpoint is around it."""
    return folder.parent if is_checkpoint(folder) else folder


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a checkpoint within a run's folder."""
    return folder.resolve().name.startswith("checkpoint-")


def stage_model(folder: Path, into: Path) -> None:
    """Puts the model and its tokenizer into `into`. Weights are linked: they may not fit on the disk a second time."""
    weights = list(_matching(folder, WEIGHTS))
    if not weights:
        last = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        raise InputError(
            f"'{folder}' holds no model in safetensors: "
            + (f"push its last checkpoint, '{last}'" if last else "give the output_dir of a finished run")
        )
    for file in weights:
        _link(file, into / file.name)
    for file in _matching(folder, OTHERS):
        target = into / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    for file in _matching(folder, SETTINGS):
        settings = json.dumps(shortened(_read_json(file)), indent=2, ensure_ascii=False)
        (into / file.name).write_text(settings + "\n", encoding="utf-8")


def stage_transcripts(run: Path, into: Path, secrets: Secrets) -> list[str]:
    """Puts every exchange of the run into `into`; returns the names of the parts there are."""
    found = [name for name, file in TRANSCRIPTS.items() if (run / file).exists()]
    if not found:
        raise InputError(f"'{run}' holds no exchanges.jsonl, so there are no transcripts: leave push_transcripts out")
    for name in found:
        with (into / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for line in read_lines(run / TRANSCRIPTS[name]):
                if "target" in line:
                    line["target"] = last_part(line["target"])
                out.write(secrets.hide_paths(as_line(line)))
    return found


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (file for file in sorted(folder.glob(pattern)) if file.is_file())


def _link(file: Path, target: Path) -> None:
    # A hard link stays whole where a trainer drops the checkpoint that it is from.
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
