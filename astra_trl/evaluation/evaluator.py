"""Evaluation of a tester on held-out openings, beside the arms that it is compared with."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import PartialState

from astra_trl.backends.base import Backend, derive_seed
from astra_trl.conversation import Opening, as_conversation
from astra_trl.embedding import Embedder, load_embedder
from astra_trl.errors import InputError
from astra_trl.evaluation.arms import (
    BASELINE,
    OPENINGS,
    TESTER,
    add_baseline_logprobs,
    answerable_part,
    describe,
    model_name,
    openings_alone,
    replace_roles,
)
from astra_trl.evaluation.comparison import compare_arms
from astra_trl.evaluation.diversity import distinct_share
from astra_trl.evaluation.figures import HARM_THRESHOLD, counts, statistics
from astra_trl.evaluation.folder import EvaluationFolder
from astra_trl.evaluation.probes import probe_figures
from astra_trl.evaluation.resampling import Statistic
from astra_trl.evaluation.results import ArmKey, Evaluation
from astra_trl.evaluation.settings import evaluation_settings
from astra_trl.numbers import require_numbers
from astra_trl.processes import share_out
from astra_trl.progress import ProgressBar, bars_within
from astra_trl.prompts.base import openings_of
from astra_trl.rewards.credit import looks_ahead
from astra_trl.rollout.opening_checks import check_openings
from astra_trl.rollout.sampler import ASTSampler, OnExchanges
from astra_trl.scorers.base import Scorer
from astra_trl.systems.base import System
from astra_trl.tree import Tree, exchanges_in_tree

COUNTED = ("exchanges", "failed", "empty_responses", "cut_responses", "unrewarded")  # in the metrics of a trainer


class ASTEvaluator:
    """Comparison of a tester with other arms on held-out openings: the untrained tester, the openings alone, and any
    other testers or lists of prompts. Every arm grows one conversation per opening, with the same seeds.

    The processes of accelerate share the openings, so all of them must evaluate; the main process writes. Rewards
    leave out terms that remember the training run (novelty): the same probe would get less the longer a run lasts.

    Args:
        sampler_or_system (`ASTSampler` or `System`):
            The system to evaluate; a sampler's depth is used too.
        prompts (`Sequence[Opening]` or `str`):
            Held-out openings, a `datasets.Dataset` of them, or a source for `load_prompts`.
        scorers (`Mapping[str, Scorer]`, *optional*):
            Further scorers by name, held out from training.
        width (`int`, *optional*, defaults to `1`):
            Probes per node. With 1 every opening has one conversation.
        depth (`int`, *optional*):
            Turns; defaults to the sampler's, or else to the system's.
        threshold (`float`, *optional*, defaults to `0.5`):
            Scores at or above this are harmful.
        seed (`int`, *optional*, defaults to `0`):
            The same seed grows the same conversations.
        draws (`int`, *optional*, defaults to `200`):
            Number of subsamples of texts that a figure of diversity is averaged over.
        embedder (`Embedder` or `str`, *optional*):
            Embeddings for the diversity of meaning: a function from texts to an array with one row per text, or a
            sentence-transformers model (`pip install 'astra-trl[diversity]'`). Without it no attacks are counted.
        output_dir (`str`, *optional*):
            Folder for `evaluation.json` and `exchanges.jsonl`. An interrupted evaluation resumes from it, and a
            complete one is not run again.
        openings_at_a_time (`int`, *optional*, defaults to `64`):
            Conversations that are grown and written together.
        disable_tqdm (`bool`, *optional*):
            `True` hides the progress bars, `False` shows them without a terminal too; see [`ProgressBar`].
    """

    def __init__(
        self,
        sampler_or_system: ASTSampler | System,
        prompts: Sequence[Opening] | str,
        scorers: Mapping[str, Scorer] | None = None,
        *,
        width: int = 1,
        depth: int | None = None,
        threshold: float = HARM_THRESHOLD,
        seed: int = 0,
        draws: int = 200,
        embedder: Embedder | str | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        openings_at_a_time: int = 64,
        disable_tqdm: bool | None = None,
    ) -> None:
        require_numbers(threshold=threshold, width=width, draws=draws, depth=depth)
        require_numbers(openings_at_a_time=openings_at_a_time)
        system: Any = getattr(sampler_or_system, "system", sampler_or_system)
        self.depth = depth or sampler_or_system.tree_depth
        self.openings = check_openings(system, openings_of(prompts), self.depth)
        self.width, self.threshold, self.seed, self.draws = width, threshold, seed, draws
        reward = system.reward.comparable
        self.system = replace_roles(system, scorers={**system.scorers, **(scorers or {})}, reward=reward)
        self._given_system = system  # its tester may be exchanged during training
        self._likelihood_under = "target" if system.likelihood_backend in (system.target, None) else "baseline"
        self.embed = load_embedder(embedder, extra="diversity") if isinstance(embedder, str) else embedder
        self.disable_tqdm = disable_tqdm
        self.seeds = [derive_seed(seed, index) for index in range(len(self.openings))]
        indices = range(len(self.openings))
        self._chunks = [indices[start : start + openings_at_a_time] for start in indices[::openings_at_a_time]]
        self.settings = evaluation_settings(
            system,
            self.system,
            self.openings,
            openings_at_a_time=openings_at_a_time,
            seed=seed,
            width=width,
            depth=self.depth,
            threshold=threshold,
            draws=draws,
            embedder=embedder if isinstance(embedder, str | None) else getattr(embedder, "name", "given"),
            likelihood_under=self._likelihood_under,
        )
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
        """Return one fully measured tree per opening: grown now, or read from the folder if it is there.

        Args:
            arm (`str`, *optional*, defaults to `"tester"`):
                The arm's name in figures; `"openings"` is the openings alone, whatever the tester.
            tester, target, baseline (`Backend`, *optional*):
                Default to the system's own at the time of the call. Without a baseline, figures under it are left out.
            replace (`bool`, *optional*, defaults to `False`):
                Whether to drop an arm of that name of other models from the folder, instead of raising `InputError`.
        """
        roles = {"tester": tester or self._given_system.tester, "target": target or self._given_system.target}
        sampler = ASTSampler(replace_roles(self.system, **roles), self.openings, self.width, self.depth)
        baseline = None if arm == OPENINGS else baseline or self._given_system.baseline
        if baseline is not None and not baseline.gives_logprobs:
            baseline = None
        description: dict[str, Any] = {"target": describe(roles["target"])}
        if arm != OPENINGS:
            description["tester"] = describe(roles["tester"])
            description["baseline"] = None if baseline is None else describe(baseline)
        name = model_name(description["target"])
        targets = {known["target"]: known["description"]["target"] for known in self._arms.values()}
        if targets.get(name, description["target"]) != description["target"]:
            raise InputError(f"two targets are called {name!r}: give one of the folders another name")
        self._arms[arm, name] = {"arm": arm, "target": name, "description": description}
        if self.folder is not None:
            self.folder.begin(self._arms[arm, name], replace)
        trees: list[Tree] = []
        processes = PartialState().num_processes
        pairs = zip(self.openings, self.seeds, strict=True)
        self._prepared = [self.system.prepare_opening(as_conversation(opening), seed) for opening, seed in pairs]
        filled = sum(self._is_filled(arm, index) for index in range(len(self.openings)))
        with ProgressBar(f"evaluating: {arm}", filled * self._exchanges(arm), disable=self.disable_tqdm) as bar:
            for start in range(0, len(self._chunks), processes):
                chunks = self._chunks[start : start + processes]
                trees += self._chunk_trees(arm, name, chunks, sampler, baseline, bar.update)
                bar.count_to(sum(1 for tree in trees for _ in tree.walk()))  # with those of other processes
        self._trees[arm, name] = trees
        return trees

    def evaluate(
        self, arms: Mapping[str, Backend] | None = None, targets: Sequence[Backend] | None = None
    ) -> Evaluation:
        """Measure and compare, against every target, the tester, the untrained tester (the system's baseline, or the
        tester as it was before training, if an adapter is trained), the openings alone, and other testers by name."""
        system = self._given_system
        baseline = system.baseline or getattr(system.tester, "before_training", lambda: None)()
        compared = {TESTER: system.tester, **({BASELINE: baseline} if baseline else {}), OPENINGS: None}
        if not self.system.target_sees_opening:
            del compared[OPENINGS]
        for target in targets or [system.target]:
            for arm, tester in {**compared, **(arms or {})}.items():
                self.measure(arm, tester, target, baseline=baseline)
        return self.evaluation()

    def metrics(self, baseline: Backend | None = None) -> dict[str, float]:
        """Return the headline figures of the present tester by plain names, without intervals; nan without data."""
        trees, harm = self.measure(TESTER, baseline=baseline), self.system.harm
        values = {name: figure.value for name, figure in self._statistics(trees).items()}
        names = {"reward": "reward", "probe_logprob_per_token": f"probe_logprob_per_token/{self._likelihood_under}"}
        names["baseline_logprob_per_token"] = "probe_logprob_per_token/baseline"
        of_harm = ("harmful_share", "harmful_conversations", "first_harmful_turn", "target_harmful_first")
        names |= {name: f"{name}/{harm}" for name in of_harm}
        names |= {name.removesuffix(f"/{harm}"): name for name in values if name.startswith("harmful_share_turn_")}
        names |= {f"harmful_share_goal_{goal.name}": f"goal_harmful_share/{goal.name}" for goal in self.system.goals}
        names |= {f"harmful_share_{name}": f"harmful_share/{name}" for name in self.system.scorers if name != harm}
        totals = counts(trees)
        probes = [node.exchange.probe for tree in trees for node in tree.nodes()]
        return {
            **{name: values[figure] for name, figure in names.items() if figure in values and "/" not in name},
            "distinct_2": distinct_share(probes, 2),
            **{name: totals[name] for name in COUNTED},
            "unscored": totals["unscored"].get(harm, 0),
        }

    def evaluation(self) -> Evaluation:
        """Return the figures of all arms measured so far, and write them to the folder."""
        by_arm = {key: self._statistics(trees) for key, trees in self._trees.items()}
        coverage: list[dict[str, Any]] = []
        with bars_within(self.disable_tqdm):
            for (arm, name), trees in self._trees.items():
                how = self.system.harm, self.threshold, self.seed, self.embed, self.draws
                of_probes, curve = probe_figures(trees, *how)
                by_arm[arm, name] |= of_probes
                coverage += [{"arm": arm, "target": name, "exchanges": n, "attacks": found} for n, found in curve]
            figures, differences = compare_arms(by_arm, len(self.openings))
        totals = [{"arm": arm, "target": name, **counts(trees)} for (arm, name), trees in self._trees.items()]
        arms = list(self._arms.values())
        evaluation = Evaluation(self.settings, arms, totals, figures, differences, dict(self._trees), coverage)
        if self.folder is not None:
            self.folder.finish(evaluation.to_json())
        return evaluation

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

    def _chunk_trees(
        self,
        arm: str,
        target: str,
        chunks: Sequence[Sequence[int]],
        sampler: ASTSampler,
        baseline: Backend | None,
        on_exchanges: OnExchanges,
    ) -> list[Tree]:
        stored = [self._read(arm, target, chunk) for chunk in chunks]
        missing = [chunk for chunk, known in zip(chunks, stored, strict=True) if known is None]
        grow = partial(self._grow, arm, sampler, baseline, on_exchanges)
        new = iter(share_out(missing, lambda mine: [grow(chunk) for chunk in mine]))
        trees: list[Tree] = []
        for chunk, known in zip(chunks, stored, strict=True):
            if known is not None:
                trees += known
                continue
            trees += (grown := next(new))
            if self.folder is not None:
                self.folder.add(arm, target, chunk, grown)
        return trees

    def _read(self, arm: str, target: str, chunk: Sequence[int]) -> list[Tree] | None:
        # The trees of a chunk, if the folder holds all of them.
        if self.folder is None:
            return None
        trees = {index: Tree(self._prepared[index]) for index in chunk}
        filled = [index for index in chunk if self._is_filled(arm, index)]
        known = self.folder.take_trees(arm, target, filled, self._exchanges(arm))
        return None if known is None else list({**trees, **dict(zip(filled, known, strict=True))}.values())

    def _is_filled(self, arm: str, index: int) -> bool:
        # An opening without anything to answer has no exchange.
        return arm != OPENINGS or bool(answerable_part(self._prepared[index]))

    def _exchanges(self, arm: str) -> int:
        # Of one opening.
        return 1 if arm == OPENINGS else exchanges_in_tree(self.width, self.depth)

    def _grow(
        self,
        arm: str,
        sampler: ASTSampler,
        baseline: Backend | None,
        on_exchanges: OnExchanges,
        chunk: Sequence[int],
    ) -> list[Tree]:
        # Always the same openings together: the other rows of a batch can change a row's last digits.
        openings, seeds = [self.openings[index] for index in chunk], [self.seeds[index] for index in chunk]
        grow = openings_alone if arm == OPENINGS else ASTSampler.grow
        trees = grow(sampler, openings, seeds, on_exchanges)
        sampler.system.examine([node for tree in trees for node in tree.nodes()])
        if baseline is not None:
            add_baseline_logprobs(baseline, sampler, trees)
        return trees
