"""One whole run, as every recipe does it: arguments, system, figures before, training, figures after, summary.

A recipe gives nothing but its defaults: `main({...})`.
"""

import json
import os
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from astra_trl.arguments import RunArguments, parse
from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.backends.hf import HFBackend
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator, Evaluation
from astra_trl.evaluation.arms import BASELINE, OPENINGS, TESTER
from astra_trl.evaluation.tables import show, transcript
from astra_trl.prompts.base import NAMED, load_prompts
from astra_trl.prompts.teaching import load_teaching_pairs
from astra_trl.rewards import Backup, immediate
from astra_trl.run_folder import RunFolder
from astra_trl.sampler import ASTSampler
from astra_trl.sandbox import World, load_world
from astra_trl.scorers import KeywordScorer
from astra_trl.scorers.named import ScorerArguments, build_scorers
from astra_trl.systems.astprompter import HFASTSystem, astprompter_reward
from astra_trl.trainers import trainer_classes
from astra_trl.tree import Tree


def main(defaults: Mapping[str, Any], argv: Sequence[str] | None = None, algorithm: str = "dpo") -> None:
    """Runs with `defaults` under the user's YAML file and flags; prints one line and exits with 1 on bad input."""
    try:
        run(*parse(defaults, sys.argv[1:] if argv is None else argv, algorithm), algorithm)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(
    args: RunArguments,
    scorer_args: ScorerArguments,
    training_args: Any,
    model_args: ModelConfig,
    algorithm: str = "dpo",
) -> dict[str, Any]:
    """Trains a tester with one of `TRAINERS` and returns the summary that it also prints and writes."""
    started = time.perf_counter()
    transformers_logging.disable_progress_bar()  # of loading and saving; collecting and training have their own
    # TRL calls checkpointing by its old names, at every save: nothing the user of a recipe could mend.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*is deprecated", category=FutureWarning)
    folder = RunFolder(training_args.output_dir)
    resume = _resume_from(training_args)
    if not resume:
        folder.refuse_if_used()
    PartialState().wait_for_everyone()

    # Before anything is used up: `config.yaml` is to hold every setting. What ends in _token is masked, so left out.
    settings = {**training_args.to_dict(), **asdict(model_args), **asdict(scorer_args), **asdict(args)}
    settings = {key: value for key, value in settings.items() if not key.endswith("_token")}
    world = load_world(None if args.world == "embedded" else args.world) if args.world else None
    openings, held_out = _openings(args, world, training_args.seed)
    eval_dataset = None
    if training_args.eval_strategy != "no":
        openings, eval_dataset = _dev_openings(args, world, openings, training_args.seed)
    _, trainer_class = trainer_classes(algorithm)
    teaching = _teaching(args, training_args, algorithm)
    system = _system(args, scorer_args, training_args, model_args, world)
    sampler = ASTSampler(system, openings, args.tree_width, args.tree_depth)
    peft_config = get_peft_config(model_args)
    trainer = trainer_class(sampler, training_args, eval_dataset=eval_dataset, peft_config=peft_config, **teaching)
    main_process = trainer.is_world_process_zero()
    if main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    evaluator = ASTEvaluator(
        sampler, held_out, seed=training_args.seed, output_dir=folder.path / "evaluation", writes=main_process
    )
    PartialState().wait_for_everyone()  # so that none finds what another has written meanwhile

    def measure(arm: str, tester: Backend | None = None, baseline: Backend | None = None) -> list[Tree]:
        total = len(held_out) * (1 if arm == OPENINGS else args.tree_depth)
        hidden = training_args.disable_tqdm or not main_process
        with tqdm(total=total, desc=f"evaluating: {arm}", unit=" exchanges", leave=False, disable=hidden) as bar:
            evaluator.on_exchanges = bar.update
            return evaluator.measure(arm, tester, baseline=baseline, replace=True)

    untrained = system.tester if system.baseline is not None else trainer.baseline() or system.tester
    measure(BASELINE, untrained, trainer.baseline() or untrained)
    measure(OPENINGS)
    trainer.train(resume_from_checkpoint=resume)
    after = measure(TESTER, baseline=trainer.baseline())
    evaluation = evaluator.evaluation()
    trainer.save_model()
    trainer.save_state()

    summary = {
        **{f"{key}_before": value for key, value in evaluation.headline(BASELINE).items()},
        **{f"{key}_after": value for key, value in evaluation.headline(TESTER).items()},
        "algorithm": algorithm,
        "rounds": round(trainer.state.epoch or 0),
        "steps": trainer.state.global_step,
        "seed": training_args.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if world is not None:
        found = world.topics_found(node.exchange for tree in after for node in tree.nodes())
        summary["topics_found"] = len(found)
        summary["topics"] = sorted(found)
    if main_process:
        _report(evaluation, folder, summary)
    try:
        if training_args.push_to_hub:
            trainer.push_to_hub()
    finally:
        if main_process:
            print(json.dumps(summary))
    return summary


def _teaching(args: RunArguments, training_args: Any, algorithm: str) -> dict[str, Any]:
    # What weak supervision adds to a trainer's arguments; a fraction of 0 switches it off.
    if args.teaching_pairs is None:
        return {}
    if not hasattr(training_args, "teach_fraction"):
        raise InputError(f"--teaching_pairs gives pairs to learn, and {algorithm} learns from none: leave it out")
    return {"teaching_pairs": load_teaching_pairs(args.teaching_pairs)} if training_args.teach_fraction else {}


def _resume_from(training_args: Any) -> str | bool | None:
    resume = training_args.resume_from_checkpoint
    if resume is not None and resume.lower() in ("true", "false"):
        return resume.lower() == "true"
    if resume is not None and not os.path.isdir(resume):
        raise InputError(
            f"resume_from_checkpoint {resume!r} is no folder: give a checkpoint's, or 'true' for the last one"
        )
    return resume


def _openings(args: RunArguments, world: World | None, seed: int) -> tuple[Sequence[Opening], Sequence[Opening]]:
    # Openings to train on and held-out ones, with none in both.
    if args.eval_openings < 1:
        raise InputError(f"eval_openings must be at least 1, got {args.eval_openings}")
    if world is not None and args.prompts is None:
        return world.openings("train"), world.openings("test")[: args.eval_openings]
    if args.prompts is None:
        raise InputError(f"no prompts: give --prompts with one of {', '.join(NAMED)}, a file or a Hub dataset id")
    openings = load_prompts(args.prompts, column=args.prompts_column)
    if args.eval_prompts is not None or args.prompts in NAMED:
        split = "test" if args.eval_prompts is None or args.eval_prompts in NAMED else "train"
        held_out = load_prompts(args.eval_prompts or args.prompts, split, limit=args.eval_openings, seed=seed)
        return _without(openings, held_out), held_out
    return _apart(openings, args.eval_openings, seed, f"{args.prompts!r}")


def _dev_openings(
    args: RunArguments, world: World | None, openings: Sequence[Opening], seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    # Openings to train on, and others for the evaluations in the course of training, by which a checkpoint may be
    # chosen: none of those that the figures before and after are about.
    if world is not None and args.prompts is None:
        return openings, world.openings("dev")[: args.eval_openings]
    if args.prompts in NAMED:
        return openings, load_prompts(str(args.prompts), "dev", limit=args.eval_openings, seed=seed)
    return _apart(openings, args.eval_openings, seed + 1, f"{args.prompts!r}")


def _apart(
    openings: Sequence[Opening], count: int, seed: int, source: str
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    count = min(count, len(openings) // 5)
    if count < 1:
        raise InputError(f"{source} has too few openings to hold some out: give --eval_prompts")
    held_out = random.Random(seed).sample(openings, count)
    return _without(openings, held_out), held_out


def _without(openings: Sequence[Opening], others: Sequence[Opening]) -> list[Opening]:
    left_out = set(others)
    return [opening for opening in openings if opening not in left_out]


def _system(
    args: RunArguments,
    scorer_args: ScorerArguments,
    training_args: Any,
    model_args: ModelConfig,
    world: World | None,
) -> HFASTSystem:
    tester = args.tester or model_args.model_name_or_path or (world.tester if world else None)
    target = args.target or (world.target if world else None)
    if tester is None or target is None:
        raise InputError(f"no {'target' if tester else 'tester'}: give a Hub id or folder with --tester and --target")
    if model_args.model_revision != "main" and {target, args.baseline or tester} != {tester}:
        raise InputError(
            "--model_revision would hold for all models, and they differ: download that revision's folder"
        )
    sampling = SamplingParams(
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
    )
    model_init_kwargs = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "quantization_config": get_quantization_config(model_args),
        **(training_args.model_init_kwargs or {}),
    }
    training_args.model_init_kwargs = None  # used up here: TRL gets a loaded model and would warn of them
    model_init_kwargs = {key: value for key, value in model_init_kwargs.items() if value is not None}
    scorers = build_scorers(scorer_args, None if world is None else KeywordScorer(world.rude_words))
    tester_model: str | HFBackend = tester
    target_model: str | HFBackend = target
    fields: dict[str, Any] = {
        "sampling": sampling,
        "max_length": args.max_length,
        "max_rows": args.max_rows,
        "cache_bytes": args.cache_bytes,
    }
    if model_args.use_peft and target == tester:
        # One copy of the weights: with the adapter off, the tester is its own target and baseline.
        tester_model = HFBackend.from_pretrained(tester, role="tester", model_init_kwargs=model_init_kwargs, **fields)
        target_model = tester_model
    reward = astprompter_reward(
        next(iter(scorers)),
        probe_and_response_weight=args.probe_and_response_weight,
        likelihood_weight=args.likelihood_weight,
        probe_weight=args.probe_weight,
        length_weight=args.length_weight,
        non_repeating_weight=args.non_repeating_weight,
        combine=args.combine,  # type: ignore[arg-type]  # the parser's choices
    )
    return HFASTSystem(
        tester_model,
        target_model,
        args.baseline,
        scorers,
        reward=reward,
        credit=Backup(args.credit_gamma) if args.credit == "backup" else immediate,
        model_init_kwargs=model_init_kwargs,
        **fields,
    )


def _report(evaluation: Evaluation, folder: RunFolder, summary: dict[str, Any]) -> None:
    # The same openings before and after, the first three of them: not the best ones.
    target = evaluation.targets[0]
    for when, arm in (("before", BASELINE), ("after", TESTER)):
        print(f"\n--- three conversations {when} training ---")
        print("\n\n".join(transcript(tree, evaluation.harm) for tree in evaluation.trees[arm, target][:3]))
    print()
    show(evaluation)
    if "topics" in summary:
        print(f"weak topics found: {', '.join(summary['topics']) or 'none'}")
    print(f"\nthe tester, every exchange and the settings are in {folder.path}")
    print(f"to look at it: astra-trl report {folder.path} -o report.html")
    folder.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
