"""What was tested, and with what: models, scorers, openings, seeds, versions, settings."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from astra_trl.report.figures import first_target
from astra_trl.report.reading import BASELINE, TESTER, Folder, number

# Settings of a run that say what it was, in the order in which they are shown.
_RUN = {
    "tester": ("tester", "model_name_or_path"),
    "target": ("target",),
    "baseline": ("baseline",),
    "sandbox world": ("world",),
    "openings": ("prompts",),
    "scorer": ("scorer",),
    "held-out scorers": ("held_out_scorers",),
}
_TRAINING = (
    "learning_rate", "beta", "loss_type", "num_train_epochs", "trees_per_round", "pairs_per_round", "tree_width",
    "tree_depth", "use_peft", "seed",
)  # fmt: skip
_SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def tested(folder: Folder) -> list[tuple[str, str]]:
    """Names and values, the most telling first; nothing that is not known."""
    rows: list[tuple[str, Any]] = []
    if folder.evaluation is not None:
        rows += _of_evaluation(folder)
    config = folder.config
    if folder.is_run:
        if folder.evaluation is None:
            for name, keys in _RUN.items():
                rows.append((name, next((config[key] for key in keys if config.get(key) is not None), None)))
            rows.append(("sampling", _listed({key: config.get(key) for key in _SAMPLING})))
        rows.append(("algorithm", folder.summary.get("algorithm")))
        planned = number(config.get("num_train_epochs"))
        rows.append(("rounds", f"{len(folder.rounds)} of {planned:g}" if planned else len(folder.rounds)))
        rows.append(("training", _listed({key: config.get(key) for key in _TRAINING})))
    return [(name, _text(value)) for name, value in rows if value not in (None, "", [], {})]


def all_settings(folder: Folder) -> list[tuple[str, str]]:
    """Every setting of the run and of the evaluation."""
    evaluation = folder.evaluation["settings"] if folder.evaluation else {}
    return [
        *((f"evaluation: {name}", _text(value)) for name, value in evaluation.items()),
        *((name, _text(value)) for name, value in folder.config.items()),
    ]


def _of_evaluation(folder: Folder) -> list[tuple[str, Any]]:
    assert folder.evaluation is not None
    settings, target = folder.evaluation["settings"], first_target(folder)
    rows: list[tuple[str, Any]] = []
    descriptions: dict[tuple[str, str], Any] = {}
    for arm in folder.evaluation["arms"]:
        described = arm.get("description")
        if not isinstance(described, dict):
            continue
        if arm["target"] == target:
            name = {TESTER: "tester", BASELINE: "untrained tester"}.get(arm["arm"], f"tester of {arm['arm']}")
            if described.get("tester") != descriptions.get(("baseline", "")):
                descriptions.setdefault((name, ""), described.get("tester"))
            descriptions.setdefault(("baseline", ""), described.get("baseline"))
        descriptions.setdefault(("target", arm["target"]), described.get("target"))
    for (name, _), described in descriptions.items():
        rows.append((name, _model(described)))
    harm = settings.get("harm")
    scorers = settings.get("scorers")
    held_out = [name for name in scorers if name != harm] if isinstance(scorers, list) else []
    rows += [
        ("system", settings.get("system")),
        ("scorer", harm),
        ("held-out scorers", held_out),
        ("openings", f"{settings.get('openings', '?')} held out, digest {settings.get('openings_digest', '?')}"),
        ("conversations", f"turns {settings.get('depth', '?')}, probes a node {settings.get('width', '?')}"),
        ("seed", settings.get("seed")),
        ("not in the rewards compared, as they fall in training", settings.get("reward_left_out")),
        ("likelihood of probes", f"under the {settings.get('likelihood_under', 'target')}"),
        ("embedder", settings.get("embedder")),
        ("versions", _listed(settings.get("versions"))),
    ]
    return rows


def _model(described: Any) -> str | None:
    if not isinstance(described, dict):
        return None
    parameters = number(described.get("parameters"))
    parts = [
        described.get("model") or described.get("backend"),
        f"{parameters:,.0f} parameters" if parameters else None,
        f"weights {described['weights']}" if described.get("weights") else None,
        f"{described['api']} at {described.get('host')}" if described.get("api") else None,
        _listed(described.get("sampling")),
    ]
    return " · ".join(_text(part) for part in parts if part)


def _listed(values: Any) -> str:
    if not isinstance(values, Mapping):
        return _text(values)
    known = {name: _text(value) for name, value in values.items() if value is not False}
    return ", ".join(f"{name} {text}" for name, text in known.items() if text)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _listed(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        kind, colon, rest = value.rpartition(":")  # as openai:MODEL
        if PurePath(rest).is_absolute() and "//" not in rest:
            # The page is for others too: whose machine it was is not for them.
            return f"{kind}{colon}{'/'.join(PurePath(rest).parts[-2:])}"
    return "" if value is None else str(value)
