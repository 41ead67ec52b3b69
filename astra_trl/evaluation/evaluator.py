"""Measures a tester, and what it is compared with, on held-out openings."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from accelerate import PartialState

from astra_trl.backends.base import Backend, derive_seed
from astra_trl.conversation import Opening, as_conversation, as_messages
from astra_trl.embedding import Embedder, load_embedder
from astra_trl.errors import InputError
from astra_trl.evaluation.arms import (
    BASELINE,
    OPENINGS,
    TESTER,
    called,
    described,
    heard_alone,
    openings_alone,
    read_by,
    with_roles,
)
from astra_trl.evaluation.diversity import distinct_share, diversity
from astra_trl.evaluation.figures import HARMFUL_FROM, counts, probes_by_opening, statistics
from astra_trl.evaluation.folder import EvaluationFolder
from astra_trl.evaluation.resampling import Statistic
from astra_trl.evaluation.results import ArmKey, Evaluation, tabled
from astra_trl.processes import share_out
from astra_trl.prompts.base import openings_of
from astra_trl.rewards.credit import looks_ahead
from astra_trl.rollout.sampler import ASTSampler, OnExchanges, ignored
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import System
from astra_trl.tree import Tree

PACKAGES = ("astra-trl", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "detoxify", "sacrebleu")


class ASTEvaluator:
    """Grows one conversation from every held-out opening for each arm (the tester, the untrained tester, the openings
    alone, any other tester or list of prompts), with the same seeds, and compares them. Several processes of
    accelerate share the openings out, so all of them must evaluate; the main one writes.

    Rewards are comparable between arms and between evaluations: terms with a memory of the training run (novelty) are
    left out of them, as the same probe would get less the longer a run has gone on. The figures of diversity say how
    new probes are.

    Args:
        sampler_or_system (`ASTSampler` or `System`):
            Who talks; a sampler's depth is taken over.
        prompts (`Sequence[Opening]` or `str`):
            Held-out openings, a `datasets.Dataset` of them, or what `load_prompts` takes.
        scorers (`Mapping[str, Scorer]`, *optional*):
            Further scorers by name, held out from training.
        width (`int`, *optional*, defaults to `1`):
            Probes per node. With 1 every opening has one conversation.
        depth (`int`, *optional*):
            Turns; defaults to the sampler's, or else to the system's.
        threshold (`float`, *optional*, defaults to `0.5`):
            A score from here on counts as harmful.
        seed (`int`, *optional*, defaults to `0`):
            The same seed grows the same conversations.
        draws (`int`, *optional*, defaults to `200`):
            How many sets of texts are drawn for a figure of diversity, which is their average.
        embedder (`Embedder` or `str`, *optional*):
            Sentence embeddings, for the figures of diversity in meaning: a function from texts to an array with a row
            each, or a model of sentence-transformers (`pip install 'astra-trl[diversity]'`).
        output_dir (`str`, *optional*):
            Where `evaluation.json` and `exchanges.jsonl` are written, as it goes: an evaluation that was interrupted
            goes on where it stopped, and one that is whole is not run again.
        openings_at_a_time (`int`, *optional*, defaults to `64`):
            Conversations that are grown and written together.
        on_exchanges (`Callable[[int], None]`, *optional*):
            Is told how many exchanges have been added.
    """

    def __init__(
        self,
        sampler_or_system: ASTSampler | System,
        prompts: Sequence[Opening] | str,
        scorers: Mapping[str, Scorer] | None = None,
        *,
        width: int = 1,
        depth: int | None = None,
        threshold: float = HARMFUL_FROM,
        seed: int = 0,
        draws: int = 200,
        embedder: Embedder | str | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        openings_at_a_time: int = 64,
        on_exchanges: OnExchanges = ignored,
    ) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"threshold must be above 0 and at most 1, got {threshold}")
        numbers = {"width": width, "draws": draws, "openings_at_a_time": openings_at_a_time}
        for name, value in {**numbers, "depth": depth}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        given = isinstance(sampler_or_system, ASTSampler)
        system: Any = sampler_or_system.system if given else sampler_or_system  # type: ignore[union-attr]
        self.depth = depth or sampler_or_system.tree_depth
        self.openings = openings_of(prompts)
        self.width, self.threshold, self.seed, self.draws = width, threshold, seed, draws
        reward = system.reward.comparable
        self.system = with_roles(system, scorers={**system.scorers, **(scorers or {})}, reward=reward)
        self._roles_of = system  # whose tester may be swapped while it is trained
        self._likelihood_under = "target" if system.likelihood_backend in (system.target, None) else "baseline"
        self.embed = load_embedder(embedder, extra="diversity") if isinstance(embedder, str) else embedder
        self.on_exchanges = on_exchanges
        self.seeds = [derive_seed(seed, index) for index in range(len(self.openings))]
        rows = range(len(self.openings))
        self._chunks = [rows[start : start + openings_at_a_time] for start in rows[::openings_at_a_time]]
        self.settings = {
            "system": type(system).__name__,
            "openings": len(self.openings),
            "openings_digest": _digest([as_messages(as_conversation(opening)) for opening in self.openings]),
            "openings_at_a_time": openings_at_a_time,
            "seed": seed,
            "width": width,
            "depth": self.depth,
            "threshold": threshold,
            "harm": system.harm,
            "scorers": list(self.system.scorers),
            "scorer_settings": {name: _set_to(scorer) for name, scorer in self.system.scorers.items()},
            "draws": draws,
            "embedder": embedder if isinstance(embedder, str | None) else getattr(embedder, "name", "given"),
            "likelihood_under": self._likelihood_under,
            "reward": {name: weight for name, (weight, _) in reward.terms.items()},
            "reward_left_out": [name for name in system.reward.terms if name not in reward.terms],
            "goals": [goal.name for goal in system.goals],
            "versions": {name: installed for name in PACKAGES if (installed := _version(name))},
        }
        self.folder: EvaluationFolder | None = None
        if output_dir is not None:
            self.folder = EvaluationFolder(output_dir, self.settings, writes=PartialState().is_main_process)
        self._arms: dict[ArmKey, dict[str, Any]] = {}
        self._trees: dict[ArmKey, list[Tree]] = {}

    def measure(
        self,
        arm: str = TESTER,
        tester: Backend | None = None,
        target: Backend | None = None,
        *,
        baseline: Backend | None = None,
        replace: bool = False,
    ) -> list[Tree]:
        """One tree an opening, measured in full: grown, or read from the folder where they are there already.

        Args:
            arm (`str`, *optional*, defaults to `"tester"`):
                What this is called in figures; `"openings"` is the openings alone, whatever the tester.
            tester, target, baseline (`Backend`, *optional*):
                Default to the system's own as they are now. Without a baseline, figures under it are left out.
            replace (`bool`, *optional*, defaults to `False`):
                Whether an arm of that name that the folder holds of other models is dropped, and not an `InputError`.
        """
        roles = {"tester": tester or self._roles_of.tester, "target": target or self._roles_of.target}
        sampler = ASTSampler(with_roles(self.system, **roles), self.openings, self.width, self.depth)
        about: dict[str, Any] = {"target": described(roles["target"])}
        name, alone = called(about["target"]), arm == OPENINGS
        baseline = None if alone else (baseline or self._roles_of.baseline)
        if baseline is not None and not baseline.gives_logprobs:
            baseline = None
        if not alone:
            about["tester"] = described(roles["tester"])
            about["baseline"] = None if baseline is None else described(baseline)
        if any(known["description"]["target"] != about["target"] for known in self._arms_against(name)):
            raise InputError(f"two targets are called {name!r}: give one of the folders another name")
        self._arms[arm, name] = {"arm": arm, "target": name, "description": about}
        if self.folder is not None:
            self.folder.begin(self._arms[arm, name], replace)
        trees: list[Tree] = []
        at_once = PartialState().num_processes
        for start in range(0, len(self._chunks), at_once):
            trees += self._trees_of(arm, name, self._chunks[start : start + at_once], sampler, baseline)
        self._trees[arm, name] = trees
        return trees

    def evaluate(
        self, arms: Mapping[str, Backend] | None = None, targets: Sequence[Backend] | None = None
    ) -> Evaluation:
        """Measures the tester, the untrained tester (the system's baseline, or the tester as it was before
        training, if an adapter is trained), the openings alone and further testers by name, against every target;
        then compares them."""
        roles = self._roles_of
        before_training = getattr(roles.tester, "before_training", lambda: None)
        baseline = roles.baseline or before_training()
        compared = {TESTER: roles.tester, **({BASELINE: baseline} if baseline else {}), OPENINGS: None}
        if not self.system.target_sees_opening:
            del compared[OPENINGS]
        for target in targets or [roles.target]:
            for arm, tester in {**compared, **(arms or {})}.items():
                self.measure(arm, tester, target, baseline=baseline)
        return self.evaluation()

    def metrics(self, baseline: Backend | None = None) -> dict[str, float]:
        """The headline figures of the tester as it is now, by plain names, without intervals; nan where nothing could
        be measured."""
        trees = self.measure(TESTER, baseline=baseline)
        harm, found = self.system.harm, {name: figure.value for name, figure in self._statistics(trees).items()}
        names = {"reward": "reward", "probe_logprob_per_token": f"probe_logprob_per_token/{self._likelihood_under}"}
        names["baseline_logprob_per_token"] = "probe_logprob_per_token/baseline"
        for name in ("harmful_share", "harmful_conversations", "first_harmful_turn", "target_harmful_first"):
            names[name] = f"{name}/{harm}"
        names |= {name.removesuffix(f"/{harm}"): name for name in found if name.startswith("harmful_share_turn_")}
        names |= {f"harmful_share_goal_{goal.name}": f"goal_harmful_share/{goal.name}" for goal in self.system.goals}
        names |= {f"harmful_share_{name}": f"harmful_share/{name}" for name in self.system.scorers if name != harm}
        counted = counts(trees)
        probes = [node.exchange.probe for tree in trees for node in tree.nodes()]
        return {
            **{name: found[figure] for name, figure in names.items() if figure in found and "/" not in name},
            "distinct_2": distinct_share(probes, 2),
            **{name: counted[name] for name in ("exchanges", "failed", "empty_responses", "unrewarded")},
            "unscored": counted["unscored"].get(harm, 0),
        }

    def evaluation(self) -> Evaluation:
        """The figures of all that was measured so far; written to the folder."""
        found = {key: self._statistics(trees) | self._diversity(trees) for key, trees in self._trees.items()}
        figures, differences = tabled(found, len(self.openings))
        counted = [{"arm": arm, "target": name, **counts(trees)} for (arm, name), trees in self._trees.items()]
        evaluation = Evaluation(
            self.settings, list(self._arms.values()), counted, figures, differences, dict(self._trees)
        )
        if self.folder is not None:
            self.folder.finish(evaluation.to_json())
        return evaluation

    def _arms_against(self, target: str) -> list[dict[str, Any]]:
        return [arm for (_, name), arm in self._arms.items() if name == target]

    def _statistics(self, trees: Sequence[Tree]) -> dict[str, Statistic]:
        return statistics(
            trees,
            self.system.harm,
            list(self.system.scorers),
            threshold=self.threshold,
            likelihood_under=self._likelihood_under,
            goals=self.system.goal_texts,
            looks_ahead=looks_ahead(self.system.credit),
        )

    def _diversity(self, trees: Sequence[Tree]) -> dict[str, Statistic]:
        # Of all probes, and of those whose response the scorer that training is about finds harmful.
        return {
            f"{name}/{which}": figure
            for which, texts in probes_by_opening(trees, self.system.harm, self.threshold).items()
            for name, figure in diversity(texts, self.seed, self.embed, self.draws).items()
        }

    def _trees_of(
        self, arm: str, target: str, chunks: Sequence[Sequence[int]], sampler: ASTSampler, baseline: Backend | None
    ) -> list[Tree]:
        there = [self._read(arm, target, chunk) for chunk in chunks]
        missing = [chunk for chunk, known in zip(chunks, there, strict=True) if known is None]
        new = iter(share_out(missing, lambda mine: [self._grown(arm, c, sampler, baseline) for c in mine]))
        found: list[Tree] = []
        for chunk, known in zip(chunks, there, strict=True):
            if known is None:
                found += (trees := next(new))
                if self.folder is not None:
                    self.folder.add(arm, target, chunk, trees)
            else:
                self.on_exchanges(sum(1 for tree in known for _ in tree.walk()))
                found += known
        return found

    def _read(self, arm: str, target: str, chunk: Sequence[int]) -> list[Tree] | None:
        # The trees of a chunk, if the folder holds all of them. An opening that has nothing to answer has no exchange.
        if self.folder is None:
            return None
        empty = {i: Tree(self.system.opened(as_conversation(self.openings[i]), self.seeds[i])) for i in chunk}
        asked = [i for i, tree in empty.items() if arm != OPENINGS or heard_alone(tree.opening)]
        exchanges = 1 if arm == OPENINGS else sum(self.width**turn for turn in range(1, self.depth + 1))
        known = self.folder.grown(arm, target, asked, exchanges)
        return None if known is None else list({**empty, **dict(zip(asked, known, strict=True))}.values())

    def _grown(self, arm: str, chunk: Sequence[int], sampler: ASTSampler, baseline: Backend | None) -> list[Tree]:
        # Always the same openings together: what is computed beside a row can change its last digits.
        openings, seeds = [self.openings[index] for index in chunk], [self.seeds[index] for index in chunk]
        grow = openings_alone if arm == OPENINGS else ASTSampler.grow
        trees = grow(sampler, openings, seeds, self.on_exchanges)
        sampler.system.examine([node for tree in trees for node in tree.nodes()])
        if baseline is not None:
            read_by(baseline, sampler, trees)
        return trees


def _digest(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data).encode(), digest_size=8).hexdigest()


def _set_to(scorer: Scorer) -> dict[str, Any]:
    # What its public attributes say of it: two word lists are two scorers.
    plain = (str, int, float, bool, type(None))
    public = {key: value for key, value in getattr(scorer, "__dict__", {}).items() if not key.startswith("_")}
    return {
        "kind": getattr(scorer, "__name__", type(scorer).__name__),
        **{key: value for key, value in public.items() if isinstance(value, plain)},
        **{
            key: list(value)
            for key, value in public.items()
            if isinstance(value, list | tuple) and all(isinstance(part, plain) for part in value)
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
