"""The data set with the conversations of a run: its files and its card."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from astra_trl.errors import InputError
from astra_trl.hub.redaction import Secrets, last_part
from astra_trl.lines import as_line, read_lines
from astra_trl.results.markdown import escape

TRANSCRIPT_FILES = ["training.jsonl", "evaluation.jsonl", "README.md"]  # everything that the data set gets
_FILES = {"training": "exchanges.jsonl", "evaluation": "evaluation/exchanges.jsonl"}


def stage_transcripts(run: Path, into: Path, secrets: Secrets) -> list[str]:
    """Put every exchange of the run into `into`; return the names of the existing parts."""
    parts = [name for name, file in _FILES.items() if (run / file).exists()]
    if not parts:
        raise InputError(f"'{run}' holds no exchanges.jsonl, so it has no transcripts: leave push_transcripts out")
    for name in parts:
        with (into / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for line in read_lines(run / _FILES[name]):
                if "target" in line:
                    line["target"] = last_part(line["target"])
                out.write(secrets.hide_paths(as_line(line)))
    return parts


def transcripts_card(repo_id: str, parts: Sequence[str]) -> str:
    """Return the data set's `README.md`; `parts` are the existing ones of `training` and `evaluation`."""
    name = repo_id.rpartition("/")[2]
    data = DatasetCardData(
        pretty_name=f"Conversations of {name}",
        task_categories=["text-generation"],
        tags=["astra-trl", "not-for-all-audiences"],
        configs=[{"config_name": part, "data_files": f"{part}.jsonl"} for part in parts],
    )
    names = {"name": escape(name), "model": escape(repo_id), "repo_id": repo_id}
    card = DatasetCard.from_template(data, str(Path(__file__).with_name("transcripts_template.md")), **names)
    return f"{card}\n"
