"""A run: figures before, training, figures after, summary."""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import is_peft_model
from transformers.utils import logging as transformers_logging
from trl import ModelConfig, get_peft_config

from astra_trl.backends.api.endpoint import CALLING
from astra_trl.backends.api.keys import without_credentials
from astra_trl.backends.base import Backend
from astra_trl.backends.hf import HFBackend
from astra_trl.cli.build import build_system
from astra_trl.cli.config import FREE_ON_RESUME, RunArguments
from astra_trl.cli.dry_run import dry_run
from astra_trl.cli.openings import dev_openings, openings_and_held_out
from astra_trl.cli.settings_file import read_settings
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator, Evaluation
from astra_trl.evaluation.arms import BASELINE, OPENINGS, TESTER
from astra_trl.evaluation.rarefaction import evenness
from astra_trl.lines import write_whole
from astra_trl.links import refuse_links
from astra_trl.outputs import explain_full_disk
from astra_trl.prompts.files import split_column
from astra_trl.prompts.teaching import COLUMNS, load_teaching_pairs
from astra_trl.results.terminal import show, transcript, weaknesses
from astra_trl.rollout.run_folder import RunFolder
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.sandbox import World, named_world
from astra_trl.trainers import trainer_classes
from astra_trl.trainers.building import check_settings
from astra_trl.trainers.checkpoints import refuse_changes
from astra_trl.tree import Tree

logger = logging.getLogger(__name__)


def run(
    args: RunArguments,
    training_args: Any,
    model_args: ModelConfig,
) -> dict[str, Any]:
    """Train a tester, and return the summary that is also printed and written."""
    started = time.perf_counter()
    transformers_logging.disable_progress_bar()  # loading and saving; collecting and training have bars of their own
    # TRL calls checkpointing by its old names at every save: the user of a recipe cannot fix that.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*is deprecated", category=FutureWarning)
    folder = RunFolder(training_args.output_dir)
    writes = PartialState().is_main_process and not args.dry_run
    advice = "Then --resume_from_checkpoint true continues the run"
    with folder.only_writer() if writes else nullcontext(), explain_full_disk(folder.path, advice):
        return _run_in(folder, args, training_args, model_args, started)


def _run_in(
    folder: RunFolder, args: RunArguments, training_args: Any, model_args: ModelConfig, started: float
) -> dict[str, Any]:
    resume = _resume_from(training_args)
    if resume:
        refuse_links(folder.path)
    elif not args.dry_run:
        folder.refuse_if_used()

    # First, as building a system takes settings away: `config.yaml` holds all but tokens and keys.
    settings = {**training_args.to_dict(), **asdict(model_args), **asdict(args)}
    settings = without_credentials({key: one for key, one in settings.items() if not key.endswith("_token")})
    if resume and folder.config.exists():
        free = FREE_ON_RESUME | training_args.resumable
        refuse_changes(_comparable(read_settings(folder.config)), _comparable(settings), folder.path, free)
    check_settings(training_args)
    PartialState().wait_for_everyone()
    world = named_world(args.world)
    openings, held_out = openings_and_held_out(args, world, training_args.seed)
    eval_dataset = None
    if training_args.eval_strategy != "no":
        openings, eval_dataset = dev_openings(args, world, openings, training_args.seed)
    if args.dry_run:
        if PartialState().is_main_process:
            print(dry_run(args, training_args, model_args, openings))
        return {}
    _, trainer_class = trainer_classes(args.algorithm)
    teaching = _teaching(args, training_args, [*held_out, *(eval_dataset or ())])
    system = build_system(args, training_args, model_args, world)
    sampler = ASTSampler(system, openings, args.tree_width, args.tree_depth)
    peft_config = get_peft_config(model_args)
    if isinstance(system.tester, HFBackend) and is_peft_model(system.tester.model):
        if peft_config is not None:
            logger.warning("%s is an adapter and is trained further: its settings hold, --lora_* do not", args.tester)
        peft_config = None
    trainer = trainer_class(sampler, training_args, eval_dataset=eval_dataset, peft_config=peft_config, **teaching)
    main_process = trainer.is_world_process_zero()
    if main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_whole(folder.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        folder.summary.unlink(missing_ok=True)  # a resumed run is not finished

    evaluator = ASTEvaluator(
        sampler,
        held_out,
        seed=training_args.seed,
        output_dir=folder.path / "evaluation",
        disable_tqdm=training_args.disable_tqdm,
    )
    PartialState().wait_for_everyone()  # so that no process finds a file that another has just written

    def measure(arm: str, tester: Backend | None = None, baseline: Backend | None = None) -> list[Tree]:
        with trainer.current_tester():
            return evaluator.measure(arm, tester, baseline=baseline, replace=True)

    untrained = system.tester if system.baseline is not None else trainer.baseline() or system.tester
    measure(BASELINE, untrained, trainer.baseline() or untrained)
    if system.target_sees_opening:
        measure(OPENINGS)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(_internal_call=True)  # pushed at the end, with the figures
    trainer.save_state()
    after = measure(TESTER, baseline=trainer.baseline())
    evaluation = evaluator.evaluation()

    summary = {
        **{f"{key}_before": value for key, value in evaluation.headline(BASELINE).items()},
        **{f"{key}_after": value for key, value in evaluation.headline(TESTER).items()},
        "algorithm": args.algorithm,
        "rounds": round(trainer.state.epoch or 0),
        "steps": trainer.state.global_step,
        "seed": training_args.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if world is not None:
        hits = world.hits(node.exchange for tree in after for node in tree.nodes())
        even = evenness(hits, len(world.weak_topics))
        summary["topics_found"] = len(hits)
        summary["topics"] = sorted(hits)
        summary["hits"] = dict(sorted(hits.items()))
        summary["evenness"] = None if math.isnan(even) else even
    if main_process:
        _report(evaluation, folder, summary, world)
    trainer.create_model_card()
    try:
        if training_args.push_to_hub:
            trainer.push_to_hub()
    finally:
        if main_process:
            print(json.dumps(summary))
    return summary


def _teaching(args: RunArguments, training_args: Any, held_out: Sequence[Opening]) -> dict[str, Any]:
    # Arguments of a trainer for weak supervision; a fraction of 0 switches it off.
    if args.teaching_pairs is None:
        return {}
    if not hasattr(training_args, "teach_fraction"):
        raise InputError(f"--teaching_pairs gives pairs to learn, and {args.algorithm} learns from none: leave it out")
    if not training_args.teach_fraction:
        return {}
    source, columns = split_column(args.teaching_pairs)
    named = columns.split(",") if columns else COLUMNS
    return {"teaching_pairs": load_teaching_pairs(source, held_out=held_out, columns=named)}


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    # How an endpoint is called, and the size of a scorer's batches, may change when a run is resumed.
    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(part) for part in value]
        if not isinstance(value, Mapping):
            return value
        return {key: strip(part) for key, part in value.items() if key not in (*CALLING, "base_url", "batch_size")}

    changed = {name: strip(settings.get(name)) for name in ("target", "scorer", "held_out_scorers", "scorers")}
    if isinstance(changed["target"], Mapping) and [*changed["target"]] == ["model"]:
        changed["target"] = changed["target"]["model"]  # only its limits were given
    return {**settings, **changed}


def _resume_from(training_args: Any) -> str | bool | None:
    resume = training_args.resume_from_checkpoint
    if resume is not None and resume.lower() in ("true", "false"):
        return resume.lower() == "true"
    if resume is not None and not os.path.isdir(resume):
        raise InputError(
            f"resume_from_checkpoint {resume!r} is not a folder: give a checkpoint, or 'true' for the last one"
        )
    return resume


def _report(evaluation: Evaluation, folder: RunFolder, summary: dict[str, Any], world: World | None) -> None:
    # The first three openings, before and after: not the best ones.
    target = evaluation.targets[0]
    for when, arm in (("before", BASELINE), ("after", TESTER)):
        print(f"\n--- three conversations {when} training ---")
        print("\n\n".join(transcript(tree, evaluation.harm) for tree in evaluation.trees[arm, target][:3]))
    print()
    show(evaluation)
    if world is not None:
        print(weaknesses(summary["hits"], len(world.weak_topics)))
    print(f"\nthe tester, every exchange and the settings are in {folder.path}")
    print(f"to view it: astra-trl report {folder.path} -o report.html")
    write_whole(folder.summary, json.dumps(summary, indent=2) + "\n")
