"""A run's model card: what the tester is, what it was measured to do, how it is loaded and trained again."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from astra_trl.backends.api.endpoint import API_PREFIX as PREFIX
from astra_trl.errors import InputError
from astra_trl.hub.hiding import Secrets, last_part
from astra_trl.hub.papers import TRL, papers_of
from astra_trl.hub.results import Row, eval_results, read_evaluation, rows_of, targets_of
from astra_trl.hub.settings import (
    HYPERPARAMETERS,
    SAMPLING,
    chosen,
    command,
    fenced,
    inline,
    read_config,
    shown_path,
)
from astra_trl.hub.staging import is_checkpoint, run_of
from astra_trl.text import parse_json, visible

_PACKAGES = ("astra-trl", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "detoxify")


def model_card(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    transcripts: str | None = None,
    known: Mapping[str, Any] | None = None,
    evaluated: bool = True,
    **metadata: Any,
) -> str:
    """The card of the model in a run's folder or in a checkpoint of it, as the text of its `README.md`.

    What the folder does not tell is left out; no path of this machine is in it.

    Args:
        folder (`str` or `Path`):
            With `config.yaml`, `summary.json` and `evaluation/evaluation.json`, as far as they are there.
        repo_id (`str`, *optional*):
            What the model is called on the Hub; defaults to the run's `hub_model_id` or its folder's name.
        transcripts (`str`, *optional*):
            Address of the data set with the run's conversations.
        known (`Mapping`, *optional*):
            Settings that `config.yaml` may lack.
        evaluated (`bool`, *optional*, defaults to `True`):
            Whether the evaluation in the folder is of this model. A checkpoint's figures are never shown.
        metadata:
            For `huggingface_hub.ModelCardData`, as `license="mit"`.
    """
    folder = Path(folder)
    run = _Run(folder, known or {}, evaluated and not is_checkpoint(folder))
    repo_id = visible(repo_id or run.default_repo_id)
    targets = sorted(targets_of(run.evaluation), key=lambda name: last_part(name) != run.target)  # the run's own first
    rows = {target: rows_of(run.evaluation, target) for target in targets}
    target = inline(run.target) if run.target else "another language model"
    parts = [
        f"# {inline(repo_id.rpartition('/')[2])}",
        f"This is a **tester**: a language model trained to find, in conversation, what makes **{target}** misbehave, "
        "with prompts that real users are likely to write. It was trained from "
        f"{_linked(run.base) if run.base else 'another model'} by {inline(run.algorithm.upper())}, on conversations "
        f"that it had with {target} ({run.system_said}).",
        "> [!WARNING]\n> It writes text that provokes harm, and is made to. Read [what it is for](#intended-use).",
        "## What it was trained against\n\n" + _table(("", ""), run.facts()),
        "## Evaluation\n\n" + _evaluation(run.evaluation, rows) if run.evaluation else "",
        "## Loading it\n\n" + _loading(run, repo_id),
        "## Training it again\n\n" + _again(run),
        "## Hyperparameters\n\n" + _table(("setting", "value"), run.hyperparameters()),
        "## Framework versions\n\n" + "\n".join(f"- {inline(name)}: {inline(v)}" for name, v in run.versions()),
        _USE,
        "## Privacy\n\nastra-trl makes this repo private unless it is told otherwise, and puts nothing into it but "
        "the model, its tokenizer and this card."
        + (f" The conversations of the run are in a private data set: {inline(transcripts)}." if transcripts else ""),
        "## Citation\n\n" + _citations(run),
    ]
    body = "\n\n".join(part for part in parts if part) + "\n"
    tags = metadata.get("tags") or ()
    data = ModelCardData(
        **{
            "library_name": "peft" if run.adapter else "transformers",
            "pipeline_tag": "text-generation",
            "base_model": run.base if _is_hub_id(run.base) else None,
            "model_name": repo_id.rpartition("/")[2],
            "eval_results": _results(run, rows) or None,
            **metadata,
            "tags": ["trl", "astra-trl", run.algorithm, run.system, *([tags] if isinstance(tags, str) else tags)],
        }
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    return Secrets(run_of(folder)).hide_paths(text)


class _Run:
    # What the folder's files say, each at one place.
    def __init__(self, folder: Path, known: Mapping[str, Any], evaluated: bool) -> None:
        run = run_of(folder)
        self.written = read_config(run)  # what a command was given
        self.config = {**known, **{key: value for key, value in self.written.items() if value is not None}}
        self.evaluation = read_evaluation(run) if evaluated else {}
        self.settings = self.evaluation.get("settings", {})
        adapter = folder / "adapter_config.json"
        self.adapter = adapter.exists() or bool(self.config.get("use_peft") and not (folder / "config.json").exists())
        self.default_repo_id = str(self.config.get("hub_model_id") or run.resolve().name)
        summary = _read(run / "summary.json")
        self.algorithm = visible(str(self.config.get("algorithm") or summary.get("algorithm") or "unknown"))
        system = str(self.config.get("system") or self.settings.get("system") or "astprompter")
        ours = re.fullmatch(r"(?:(?:HF)?(AST)\w*|(Perez|CRT|Malibu)System)", system)
        name = "astprompter" if ours and ours[1] else ours[2].lower() if ours else visible(system)
        self.system = name
        said = {"astprompter": "ASTPrompter", "perez": "Perez et al.", "crt": "CRT", "malibu": "MALIBU"}
        self.system_said = said.get(name, inline(name))
        base = _read(adapter).get("base_model_name_or_path") or self._first("model_name_or_path", "tester")
        self.base = self._model(base, "tester")
        self.target = self._model(self._first("target"), "target")

    def _first(self, *names: str) -> Any:
        return next((self.config[name] for name in names if self.config.get(name)), None)

    def _model(self, setting: Any, role: str) -> str:
        # As the settings name it, or else as the evaluation does.
        if not setting and self.config.get("world"):
            return f"sandbox-{role}"
        for arm in self.evaluation.get("arms", ()) if not setting else ():
            described = (arm.get("description") or {}).get(role) or {}
            setting = setting or described.get("model")
        return visible(last_part(str(setting).removeprefix(PREFIX))) if setting else ""

    def _behind_api(self) -> str | None:
        # By which of an endpoint's ways the target was asked; where it is, is for nobody else.
        api = self.config.get("target_api") if str(self.config.get("target")).startswith(PREFIX) else None
        for arm in self.evaluation.get("arms", ()):
            api = api or ((arm.get("description") or {}).get("target") or {}).get("api")
        return {"chat": "chat completions"}.get(str(api), str(api)) if api else None

    def scorer(self, name: str) -> str:
        """A scorer of the evaluation with its kind."""
        kind = (self.settings.get("scorer_settings") or {}).get(name, {}).get("kind")
        return f"{name} ({kind})" if kind else name

    def facts(self) -> list[tuple[str, Any]]:
        config, settings = self.config, self.settings
        scorers = settings.get("scorers") or []
        harm = settings.get("harm")
        trained_on = self.scorer(harm) if harm else None if config.get("world") else shown_path(config.get("scorer"))
        held_out = [self.scorer(name) for name in scorers if name != harm]
        if not settings:
            held_out = [shown_path(name) for name in config.get("held_out_scorers") or () if name != "none"]
        found = {
            "system": self.system,
            "algorithm": self.algorithm,
            "tester before training": self.base,
            "target": self.target,
            "target behind": self._behind_api() and f"an API, by {self._behind_api()}",
            "sandbox world": last_part(str(config["world"])) if config.get("world") else None,
            "openings": shown_path(config.get("prompts")),
            "scorer trained on": trained_on,
            "scorers held out": held_out,
            "harmful from a score of": settings.get("threshold"),
        }
        return [(name, value) for name, value in found.items() if value not in (None, "", [])]

    def hyperparameters(self) -> list[tuple[str, Any]]:
        return [(f"`{name}`", value) for name, value in chosen(self.config, HYPERPARAMETERS)]

    def openings(self) -> str:
        """The name of what the held-out openings are from."""
        named = self._first("eval_prompts", "prompts")
        return visible(shown_path(named)) if named else "astra-trl-sandbox" if self.config.get("world") else "openings"

    def versions(self) -> list[tuple[str, str]]:
        if self.settings.get("versions"):
            return list(self.settings["versions"].items())
        found = []
        for name in _PACKAGES:
            try:
                found.append((name, version(name)))
            except PackageNotFoundError:
                continue
        return found


def _results(run: _Run, rows: Mapping[str, Sequence[Row]]) -> list[Any]:
    # Of the first target alone, the one trained against: the metadata cannot tell targets apart.
    target = next(iter(rows), None)
    if target is None or not rows[target]:
        return []
    return eval_results(rows[target], run.settings, run.openings(), visible(last_part(target)))


def _evaluation(evaluation: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> str:
    if not any(rows.values()):
        return "No untrained tester was measured beside this one, so its figures would say nothing."
    settings = evaluation["settings"]
    parts = [
        f"{inline(settings.get('openings', '?'))} openings that training never saw; conversations of "
        f"{inline(settings.get('depth', '?'))} turns, with the same seeds for each tester. A response is harmful from "
        f"a score of {inline(settings.get('threshold', 0.5))} on. In brackets: 95% intervals, between "
        "openings. In the last column: this tester's figure less the untrained one's, opening by opening."
    ]
    for target, found in rows.items():
        if not found:
            continue
        heading = f"### Against {inline(last_part(target))}\n\n" if len(rows) > 1 else ""
        head = ("figure", "this tester", "untrained tester", "openings alone", "difference")
        parts.append(heading + _table(head, [(inline(row.label), *row.cells()) for row in found]))
        parts += [
            sentence
            for row in evaluation.get("counts", ())
            if row.get("target") == target
            for sentence in _left_out(row, settings)
        ]
    if left_out := settings.get("reward_left_out"):
        parts.append(
            f"Rewards are without {', '.join(map(inline, left_out))}: what these terms give to a probe falls as "
            "training goes on."
        )
    return "\n\n".join(parts)


def _left_out(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    arm, exchanges = inline(counts.get("arm")), inline(counts.get("exchanges"))
    failed, empty = counts.get("failed", 0), counts.get("empty_responses", 0)
    unscored = sum((counts.get("unscored") or {}).get(name, 0) for name in settings.get("scorers") or ())
    if failed or empty or unscored:
        yield (
            f"Of the {exchanges} exchanges of {arm}, {inline(failed)} failed, {inline(empty)} got an empty response "
            f"and {inline(unscored)} could not be scored; they are in no figure of harm."
        )
    shortened, missing = (counts.get(f"openings_{name}", 0) for name in ("shortened", "left_out"))
    if shortened or missing:
        yield (
            f"Of {arm}, {inline(shortened)} were heard without the assistant's turns at their end, and "
            f"{inline(missing)} left out, as no user's turn is at their end to answer."
        )


def _loading(run: _Run, repo_id: str) -> str:
    model = json.dumps(repo_id)
    if not run.adapter:
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        load, note = f"tester = AutoModelForCausalLM.from_pretrained({model})", ""
    elif _is_hub_id(run.base) or not run.base:
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        load, note = f"tester = AutoPeftModelForCausalLM.from_pretrained({model})", ""
    else:
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        base = json.dumps(run.base)
        load = f"base = AutoModelForCausalLM.from_pretrained({base})\n"
        load += f"tester = PeftModel.from_pretrained(base, {model})"
        note = f"\n\nThe base model was a folder, {inline(run.base)}, that you need too."
    sampling = {name: value for name, value in chosen(run.config, SAMPLING) if name != "max_length"}
    arguments = "".join(f", {name}={json.dumps(value)}" for name, value in sampling.items())
    code = (
        f"{imports}\n\n{load}\ntokenizer = AutoTokenizer.from_pretrained({model})\n\n"
        'conversation = "What did you do last weekend?\\n"  # one utterance a line\n'
        'inputs = tokenizer(conversation, return_tensors="pt").to(tester.device)\n'
        f"output = tester.generate(**inputs, do_sample=True{arguments})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    return fenced(code, "python") + note


def _again(run: _Run) -> str:
    if not run.written:
        return "It was trained from Python, with the settings below."
    return "Names without a slash may be files and folders of whoever trained it.\n\n" + fenced(
        command(run.config, run.system, run.algorithm), "bash"
    )


def _citations(run: _Run) -> str:
    papers = list(papers_of(run.system, run.algorithm, run.config.get("loss_type")))
    listed = "\n".join(f"- [{paper.title}](https://arxiv.org/abs/{paper.arxiv})" for paper in papers)
    trl = "- [TRL](https://github.com/huggingface/trl)"
    return f"{listed}\n{trl}".strip() + "\n\n" + fenced("\n\n".join([*(p.bibtex for p in papers), TRL]), "bibtex")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([name, *map(inline, cells)] for name, *cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _linked(model: str) -> str:
    return f"[{inline(model)}](https://huggingface.co/{model})" if _is_hub_id(model) else inline(model)


def _is_hub_id(model: str) -> bool:
    # A bare name is a folder's more often than one of the few models without a namespace.
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII) is not None


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{file}' is damaged: write it again, or delete it") from error
    return found if isinstance(found, dict) else {}


_USE = """\
## Intended use

For whoever builds or ships a language model: to find its failures before its users do, to measure whether a mitigation
helps, and to make data that a safer model is trained on. Use it against systems that are yours or that you were asked
to test, with people who read the outcome prepared for it.

Out of scope: provoking systems that you have no leave to test, harassing people, or publishing what it finds where it
does harm. A target that this tester finds no fault in is not therefore safe: it was trained against one target, on one
kind of opening and by the scorers above, and a scorer's score is not a person's judgement."""
