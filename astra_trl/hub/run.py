"""Facts of a run for its model card."""

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from astra_trl.backends.api.endpoint import API_PREFIX
from astra_trl.evaluation.results import TESTER
from astra_trl.hub.config import describe_model, describe_scorer, shareable
from astra_trl.hub.redaction import last_part
from astra_trl.hub.staging import run_of
from astra_trl.results.reading import harmless, read_config, read_evaluation, read_object
from astra_trl.systems import SYSTEMS, system_class

_PACKAGES = ("astra-trl", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "detoxify")

_ALGORITHM_PAPERS = {
    "dpo": "2305.18290", "ipo": "2310.12036", "gfn": "2405.18540", "grpo": "2402.03300", "rloo": "2402.14740",
    "ppo": "1707.06347",
}  # fmt: skip


class Run:
    """Facts of a run for its model card, from the files of its folder and from `known` settings."""

    def __init__(self, folder: Path, known: Mapping[str, Any], evaluated: bool) -> None:
        run = run_of(folder)
        self.written = read_config(run)  # only a command writes it
        self.config = {**harmless(known), **{key: one for key, one in self.written.items() if one is not None}}
        self.evaluation = read_evaluation(run / "evaluation" / "evaluation.json") if evaluated else None
        self.settings = self.evaluation.settings if self.evaluation else {}
        adapter = folder / "adapter_config.json"
        use_peft = self.config.get("use_peft") and not (folder / "config.json").exists()
        self.is_adapter = adapter.exists() or bool(use_peft)
        self.default_repo_id = str(self.config.get("hub_model_id") or run.resolve().name)
        summary = read_object(run / "summary.json")
        self.algorithm = str(self.config.get("algorithm") or summary.get("algorithm") or "unknown")
        system = str(self.config.get("system") or self.settings.get("system") or "astprompter")
        by_class = {path.rpartition(".")[2]: name for name, path in SYSTEMS.items()} | {
            "ASTPrompterSystem": "astprompter"
        }
        self.system = by_class.get(system, system)
        # The code of a user's own system is not run for the card: the evaluation has its label and its paper.
        own = system_class(self.system) if self.system in SYSTEMS else None
        self.label = str((own.label if own else self.settings.get("system_label")) or self.system)
        paper = own.paper if own else self.settings.get("system_paper")
        losses = self.config.get("loss_type") or []
        ipo = ["ipo"] if "ipo" in ([losses] if isinstance(losses, str) else losses) else []
        papers = {self.label: paper}
        papers |= {name.upper(): _ALGORITHM_PAPERS.get(name) for name in (self.algorithm, *ipo)}
        self.papers = {name: paper for name, paper in papers.items() if paper}
        base = read_object(adapter).get("base_model_name_or_path")
        self.base = self._model(base or self.config.get("model_name_or_path") or self.config.get("tester"), "tester")
        self.target = self._model(self.config.get("target"), "target")

    def _model(self, setting: Any, role: str) -> str:
        # As the settings name it, or else as the evaluation does.
        if not setting and self.config.get("world"):
            return f"sandbox-{role}"
        models = [self._description(arm, role).get("model") for arm in self.evaluation.arms] if self.evaluation else []
        return describe_model(setting or next(filter(None, models), None)).removeprefix(API_PREFIX)

    @staticmethod
    def _description(arm: Mapping[str, Any], role: str) -> Mapping[str, Any]:
        return (arm.get("description") or {}).get(role) or {}

    def _api(self) -> str | None:
        # The kind of API of the target; its address is private.
        target, api = self.config.get("target"), self.config.get("target_api")
        settings = target if isinstance(target, Mapping) else {"model": target, "api": api}
        apis = [(settings.get("api") or "chat") if str(settings.get("model")).startswith(API_PREFIX) else None]
        if self.evaluation:
            apis += [self._description(arm, "target").get("api") for arm in self.evaluation.arms]
        api = next(filter(None, apis), None)
        return {"chat": "chat completions"}.get(str(api), str(api)) if api else None

    def _scorers(self) -> tuple[str, list[str]]:
        # The scorer trained on, and those held out.
        if self.evaluation:
            kinds = {name: one.get("kind") for name, one in (self.settings.get("scorer_settings") or {}).items()}
            names = {n: f"{n} ({kinds[n]})" if kinds.get(n) else n for n in self.evaluation.scorers}
            return names.pop(self.evaluation.harm, ""), list(names.values())
        scorers = self.config.get("scorers")
        if isinstance(scorers, Mapping) and scorers:
            first, *rest = (f"{name} ({describe_scorer(one)})" for name, one in scorers.items())
            return first, rest
        held_out = [describe_scorer(one) for one in self.config.get("held_out_scorers") or () if one != "none"]
        scorer = None if self.config.get("world") else self.config.get("scorer")
        return describe_scorer(scorer) if scorer else "", held_out

    def facts(self) -> list[tuple[str, Any]]:
        """Return names and values of what is known of the run."""
        api, world = self._api(), self.config.get("world")
        trained_on, held_out = self._scorers()
        rows = {
            "system": self.system,
            "algorithm": self.algorithm,
            "tester before training": self.base,
            "target": self.target,
            "access to the target": api and f"an API, by {api}",
            "sandbox world": last_part(str(world)) if world else None,
            "openings": shareable(self.config.get("prompts") or ""),
            "scorer trained on": trained_on,
            "scorers held out": held_out,
            "lowest harmful score": self.settings.get("threshold"),
        }
        return [(name, value) for name, value in rows.items() if value not in (None, "", [])]

    def openings(self) -> str:
        """Return the name of the set that the held-out openings are from."""
        prompts = self.config.get("eval_prompts") or self.config.get("prompts")
        return shareable(prompts) if prompts else "astra-trl-sandbox" if self.config.get("world") else "openings"

    def versions(self) -> Iterator[tuple[str, str]]:
        """Yield names and versions of packages: those of the evaluation, or else the installed ones."""
        if self.settings.get("versions"):
            yield from self.settings["versions"].items()
            return
        for name in _PACKAGES:
            try:
                yield name, version(name)
            except PackageNotFoundError:
                continue

    def targets(self) -> list[str]:
        """Return the targets of the evaluation, first the one that the tester was trained against."""
        targets = [arm["target"] for arm in self.evaluation.arms if arm["arm"] == TESTER] if self.evaluation else []
        return sorted(targets, key=lambda name: last_part(name) != self.target)
