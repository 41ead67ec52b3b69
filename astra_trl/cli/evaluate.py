"""Evaluation of a tester by `astra-trl evaluate`: every arm against every target."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from astra_trl.backends.base import Backend
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.loading import adapter_base
from astra_trl.backends.static import ListedBackend
from astra_trl.cli.build import Calls, loading_kwargs, local_target, system_of, talking
from astra_trl.cli.config import EvaluateArguments, LoadArguments, RunArguments
from astra_trl.cli.openings import openings_and_held_out
from astra_trl.conversation import Opening
from astra_trl.embedding import load_embedder
from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator, Evaluation
from astra_trl.evaluation.arms import BASELINE, OPENINGS, TESTER
from astra_trl.evaluation.folder import lock_evaluation
from astra_trl.outputs import explain_full_disk
from astra_trl.prompts.base import NAMED, load_prompts
from astra_trl.prompts.files import local_file, split_column
from astra_trl.results.terminal import show
from astra_trl.rollout.run_folder import read_exchanges
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.sandbox import World, named_world
from astra_trl.systems import System
from astra_trl.systems.models import role_fields
from astra_trl.systems.perez import PerezSystem, scored_questions
from astra_trl.tree import Node

ZERO_SHOT_CASES = 1000  # that few-shot examples are drawn from


def evaluate(args: EvaluateArguments, load: LoadArguments) -> Evaluation:
    """Measure the tester and the arms it is compared with, print the figures and write them to `output_dir`."""
    transformers_logging.disable_progress_bar()
    if args.tester is None or not args.target:
        raise InputError("an evaluation needs a tester and a target: give --tester and --target")
    output_dir = Path(args.output_dir or f"evaluation-{Path(args.tester).name}")
    # Now, and not only once the models are loaded.
    lock = lock_evaluation(output_dir)
    try:
        with explain_full_disk(output_dir, "Give the command again to continue"):
            return _evaluate_in(output_dir, args.tester, args.target, args, load)
    finally:
        lock.release()


def _evaluate_in(
    output_dir: Path, tester_id: str, targets: Sequence[Any], args: EvaluateArguments, load: LoadArguments
) -> Evaluation:
    world = named_world(args.world)
    run = _of_run(args)
    openings = _held_out(args, run, world)
    listed = _load_listed(args)
    models = _Models(args, load)
    tester = models.tester(tester_id)
    baseline = None if args.baseline in (None, "none") else models.frozen("baseline", args.baseline)
    arms: dict[str, Backend] = {TESTER: tester}
    if baseline is not None:
        arms[BASELINE] = baseline
    arms |= {name: listed[name] if name in listed else models.tester(what) for name, what in args.arms.items()}
    first, *others = targets
    own: Any = args.system_kwargs
    kwargs = dict(own or {})
    few_shot = kwargs.pop("method", None) == "few_shot"
    system = system_of(
        replace(args, system_kwargs=kwargs), world, tester, models.target(first), baseline, models.calls
    )
    if few_shot:
        _give_examples(system, args)
    evaluator = ASTEvaluator(
        system,
        openings,
        width=args.width,
        depth=args.depth,
        threshold=args.threshold,
        seed=args.seed,
        draws=args.draws,
        embedder=args.embedder and load_embedder(args.embedder, "diversity", args.allow_pickle),
        output_dir=output_dir,
    )
    for target in (first, *others):
        # One target at a time is in memory.
        answering = system.target if target == first else models.target(target)
        alone = args.openings_arm and system.target_sees_opening
        for arm, speaking in [*arms.items(), *([(OPENINGS, tester)] if alone else [])]:
            evaluator.measure(arm, speaking, answering)
        del answering
    evaluation = evaluator.evaluation()
    show(evaluation)
    print(f"\nevery figure and every exchange are in {output_dir}")
    print(f"to view it: astra-trl report {output_dir} -o report.html")
    return evaluation


class _Models:
    # Models by role; roles that share weights share one copy.
    def __init__(self, args: EvaluateArguments, load: LoadArguments) -> None:
        self.talking = talking(args)
        self.kwargs = loading_kwargs(load, load.trust_remote_code, args.allow_pickle)
        self.bases: dict[str, HFBackend] = {}  # of adapters, by id
        self.calls = Calls(args, args.target or (), args.response_cache)

    def tester(self, model_id: str) -> HFBackend:
        """Return the model of a Hub id or folder; an adapter on top of its base."""
        tester = self._load("tester", model_id)
        if (base := adapter_base(model_id, "tester", self.kwargs.get("revision"))) is not None:
            self.bases[base] = tester
        return tester

    def target(self, spec: Any) -> Any:
        """Return the model under test: behind an API, a function, or a Hub id or folder."""
        model_id = local_target(spec)
        return self.calls.target(spec) if model_id is None else self.frozen("target", model_id)

    def frozen(self, role: str, model_id: str) -> HFBackend:
        """Return the model of a Hub id or folder: if it is a tester's base, that one with the adapter off."""
        if model_id in self.bases:
            return replace(self.bases[model_id], use_adapter=False, **role_fields(role, **self.talking))
        return self._load(role, model_id)

    def _load(self, role: str, model_id: str) -> HFBackend:
        return HFBackend.from_pretrained(
            model_id, role=role, model_init_kwargs=self.kwargs, **role_fields(role, **self.talking)
        )


def _give_examples(system: System, args: EvaluateArguments) -> None:
    # The paper's few-shot examples are questions with the scores of their answers, sampled by zero-shot by default.
    if not isinstance(system, PerezSystem):
        raise InputError(f"method few_shot belongs to perez, and the system is {args.system}: give --system perez")
    if args.examples is None:
        nodes = zero_shot_cases(system, args.seed)
    else:
        file = Path(args.examples)
        if not file.is_file():
            raise InputError(f"--examples {args.examples!r} is not a file: give the exchanges.jsonl of a run")
        nodes = [node for _, node in read_exchanges(file)]
    system.use_examples(scored_questions(nodes, system.harm))


def zero_shot_cases(system: PerezSystem, seed: int) -> list[Node]:
    """Return scored exchanges to draw few-shot examples from; an evaluation with that seed samples different ones."""
    sampler = ASTSampler(system, [system.instruction], tree_width=1)
    trees = sampler.collect(ZERO_SHOT_CASES, seed=seed + 1).trees
    return [node for tree in trees for node in tree.nodes()]


def _load_listed(args: EvaluateArguments) -> dict[str, ListedBackend]:
    # Of the further arms, those that are prompts, which are sent as they are; the others are testers.
    listed = {}
    for name, what in args.arms.items():
        source, column = split_column(what)
        if source in NAMED or (Path(source).suffix and local_file(source)):
            option = f"--also {name}={source}:COLUMN with COLUMN"
            prompts: Any = load_prompts(source, column=column, option=option)
            listed[name] = ListedBackend(prompts, Path(source).name)
    return listed


def _of_run(args: EvaluateArguments) -> RunArguments:
    # Settings of the run that trained the tester, or the defaults.
    known = {f.name for f in fields(RunArguments)}
    return RunArguments(**{key: value for key, value in args.run_settings.items() if key in known})


def _held_out(args: EvaluateArguments, run: RunArguments, world: World | None) -> Sequence[Opening]:
    if args.prompts is not None:
        split = "test" if args.prompts in NAMED else "train"
        return load_prompts(
            args.prompts, split, args.prompts_column, args.eval_openings, args.seed, option="--prompts_column"
        )
    run = replace(run, system=args.system, system_kwargs=args.system_kwargs)
    if run.prompts is not None and run.eval_prompts is not None:
        # The others are not read.
        run = replace(run, prompts=run.eval_prompts, prompts_column=run.eval_prompts_column)
    if run.prompts is None or run.eval_prompts is not None or run.prompts in NAMED:
        run = replace(run, eval_openings=args.eval_openings)
    elif not 1 <= args.eval_openings <= run.eval_openings:
        # With another number the run would have held others out, and these would be among those that it trained on.
        raise InputError(
            f"eval_openings must be at least 1 and at most the {run.eval_openings} that the run held out of its "
            "prompts: give fewer, or other openings with --prompts"
        )
    return openings_and_held_out(run, world, args.run_settings.get("seed", args.seed))[1][: args.eval_openings]
