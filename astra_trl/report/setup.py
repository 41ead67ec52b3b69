"""Setup of a run or an evaluation: models, scorers, openings, seeds, versions, settings."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from astra_trl.evaluation.results import BASELINE, TESTER, Evaluation, number
from astra_trl.results.reading import Folder

# Settings that describe a run, by the names under which they are shown; the first of them that is set is shown.
_RUN = {
    "tester": ("tester", "model_name_or_path"),
    "target": ("target",),
    "baseline": ("baseline",),
    "sandbox world": ("world",),
    "openings": ("prompts",),
    "scorer": ("scorer", "scorers"),
    "held-out scorers": ("held_out_scorers",),
    "reward": ("reward",),
}
_TRAINING = (
    "learning_rate", "beta", "loss_type", "num_train_epochs", "trees_per_round", "pairs_per_round", "tree_width",
    "tree_depth", "use_peft", "seed",
)  # fmt: skip
_SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def setup(folder: Folder) -> list[tuple[str, str]]:
    """Return names and values, the most important first; unknown ones are left out."""
    rows: list[tuple[str, Any]] = [] if folder.evaluation is None else _of_evaluation(folder.evaluation)
    config = folder.config
    if folder.is_run:
        if folder.evaluation is None:
            for name, keys in _RUN.items():
                rows.append((name, next((config[key] for key in keys if config.get(key) is not None), None)))
            rows.append(("sampling", {key: config.get(key) for key in _SAMPLING}))
        rows.append(("algorithm", folder.summary.get("algorithm")))
        planned = number(config.get("num_train_epochs"))
        rows.append(("rounds", f"{len(folder.rounds)} of {planned:g}" if planned else len(folder.rounds)))
        rows.append(("training", {key: config.get(key) for key in _TRAINING}))
    return [(name, text) for name, value in rows if (text := _text(value))]


def all_settings(folder: Folder) -> list[tuple[str, str]]:
    """Return every setting of the run and of the evaluation."""
    evaluation = folder.evaluation.settings if folder.evaluation else {}
    return [
        *((f"evaluation: {name}", _text(value)) for name, value in evaluation.items()),
        *((name, _text(value)) for name, value in folder.config.items()),
    ]


def _of_evaluation(evaluation: Evaluation) -> list[tuple[str, Any]]:
    settings = evaluation.settings
    models: dict[tuple[str, str], Any] = {}
    for arm in evaluation.arms:
        description = arm.get("description")
        if not isinstance(description, dict):
            continue
        if arm["target"] == evaluation.targets[0]:
            name = {TESTER: "tester", BASELINE: "untrained tester"}.get(arm["arm"], f"tester of {arm['arm']}")
            if description.get("tester") != models.get(("baseline", "")):
                models.setdefault((name, ""), description.get("tester"))
            models.setdefault(("baseline", ""), description.get("baseline"))
        models.setdefault(("target", arm["target"]), description.get("target"))
    return [
        *((name, _model(description)) for (name, _), description in models.items()),
        ("system", settings.get("system_label") or settings.get("system")),
        ("scorer", evaluation.harm),
        ("held-out scorers", [name for name in evaluation.scorers if name != evaluation.harm]),
        ("openings", f"{settings.get('openings', '?')} held out, digest {settings.get('openings_digest', '?')}"),
        ("conversations", f"{settings.get('depth', '?')} turns, probes per node: {settings.get('width', '?')}"),
        ("seed", settings.get("seed")),
        ("terms left out of the rewards compared, as they fall during training", settings.get("reward_left_out")),
        ("likelihood of probes", f"under the {settings.get('likelihood_under', 'target')}"),
        ("embedder", settings.get("embedder")),
        ("versions", settings.get("versions")),
    ]


def _model(description: Any) -> str | None:
    if not isinstance(description, dict):
        return None
    parameters = number(description.get("parameters"))
    parts = [
        description.get("model") or description.get("backend"),
        f"{parameters:,.0f} parameters" if parameters else None,
        f"weights {description['weights']}" if description.get("weights") else None,
        f"{description['api']} at {description.get('host')}" if description.get("api") else None,
        description.get("sampling"),
    ]
    return " · ".join(text for part in parts if (text := _text(part)))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        texts = {name: _text(one) for name, one in value.items() if one is not False}
        texts = {name: f"({text})" if isinstance(value[name], Mapping) else text for name, text in texts.items()}
        return ", ".join(f"{name} {text}" for name, text in texts.items() if text not in ("", "()"))
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        kind, colon, rest = value.rpartition(":")  # e.g. openai:MODEL
        if PurePath(rest).is_absolute() and "//" not in rest:
            # The page may be given to other people, who should not see the paths of this machine.
            return f"{kind}{colon}{'/'.join(PurePath(rest).parts[-2:])}"
    return "" if value is None else str(value)
