"""Repeated kills of a sandbox run that is resumed: `python -m benchmarks.kills --kills 100 --algorithm dpo`.

The events of a run are counted: files opened, renamed or removed, utterances sampled, training steps begun. A process
kills itself (SIGKILL) at a random event, drawn so that every phase of a run gets its share, or up to 3 ms later. One
in three is killed once more while it is resumed. At the end its weights, transcript, records, figures and log must be
those of an uninterrupted run, byte for byte except for times. Prints one line per kill and a summary; exits with 1 if
a run differs.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet
from transformers import Trainer

from astra_trl.backends.hf.session import HFSession
from astra_trl.cli.parse_train import parse
from astra_trl.cli.train import run
from astra_trl.evaluation import ASTEvaluator
from astra_trl.outputs import LOCK
from astra_trl.sandbox.defaults import SANDBOX
from astra_trl.systems.astprompter import ASTPrompterSystem
from astra_trl.trainers import trainer_classes
from astra_trl.trainers.rounds import RoundsMixin

SMALL = {
    "num_train_epochs": 3,
    "trees_per_round": 2,
    "max_trees_per_round": 4,
    "tree_width": 3,
    "tree_depth": 2,
    "eval_openings": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 3,  # so that a checkpoint falls between two lines of the log
    "eval_strategy": "epoch",
    "per_device_train_batch_size": 6,
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}
NOVEL = {**ASTPrompterSystem.defaults["reward"], "self_bleu_novelty": 0.1}  # has a memory of the run
OF_ALGORITHM = {
    "dpo": {"pairs_per_round": 18, "min_margin": 0.0},
    "grpo": {"reward": NOVEL},
    "rloo": {},
    "ppo": {"reward": NOVEL, "per_device_train_batch_size": 2},
    "sft": {"cases_per_round": 18, "min_score": 1e-9},
}
TIMES = ("seconds", "runtime", "per_second", "step_time", "eps")


class Events:
    """Events of a run, by phase, at one of which the process may kill itself.

    Args:
        folder (`Path`):
            Folder of the run: only files in it count.
        kill_at (`int`, *optional*):
            The number of the event to kill at.
        delay (`float`):
            Seconds from the event to the kill.
    """

    def __init__(self, folder: Path, kill_at: int | None, delay: float) -> None:
        self.folder, self.kill_at, self.delay = str(folder), kill_at, delay
        self.phases: list[str] = []
        self.phase = "starting"

    def watch(self, algorithm: str) -> None:
        sys.addaudithook(self._audit)
        self._mark_phase(RoundsMixin, "begin_round", "collecting", then="between")
        self._mark_phase(Trainer, "_save_checkpoint", "saving")
        self._mark_phase(ASTEvaluator, "measure", "evaluating")
        self._mark_phase(RoundsMixin, "begin_training", "resuming", then="between")
        _, trainer_class = trainer_classes(algorithm)
        self._mark_phase(trainer_class, "_save_checkpoint", "saving")
        self._count_calls(trainer_class, "training_step", "training")
        self._count_calls(torch.optim.AdamW, "step", "training")
        self._count_calls(HFSession, "sample", None)

    def happens(self, phase: str | None = None) -> None:
        self.phase = phase or self.phase
        self.phases.append(self.phase)
        if len(self.phases) - 1 == self.kill_at:
            if self.delay == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at any instruction
            signal.setitimer(signal.ITIMER_REAL, self.delay)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(self.folder):
            self.happens()

    def _mark_phase(self, of: type, name: str, phase: str, then: str | None = None) -> None:
        method = getattr(of, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.phase = self.phase, phase
            self.happens()
            try:
                return method(*args, **kwargs)
            finally:
                self.phase = then or before
                self.happens()

        setattr(of, name, call)

    def _count_calls(self, of: type, name: str, phase: str | None) -> None:
        method: Callable[..., Any] | None = getattr(of, name, None)
        if method is None:
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            self.happens(phase)
            return method(*args, **kwargs)

        setattr(of, name, call)


def run_in_child(
    algorithm: str, folder: Path, resume: bool, kill_at: int | None = None, delay: float = 0.0
) -> tuple[int, list[str]]:
    """Return the wait status of the run's process, and the phases of its events if it finished."""
    events_file = folder.parent / "events.json"
    events_file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        # The parent has not used torch, so a fork is as good as a fresh process, and much faster.
        torch.set_num_threads(1)
        log = os.open(folder.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            events = Events(folder, kill_at, delay)
            events.watch(algorithm)
            flags = ["--output_dir", str(folder), *(["--resume_from_checkpoint", "true"] if resume else [])]
            defaults = {**SANDBOX[algorithm], **SMALL, **OF_ALGORITHM[algorithm]}
            run(*parse(defaults, flags))
            events_file.write_text(json.dumps(events.phases))
            status = 0
        finally:
            with contextlib.suppress(BaseException):
                if status:
                    sys.excepthook(*sys.exc_info())
                sys.stdout.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return ended, json.loads(events_file.read_text()) if events_file.exists() else []


def results_of(folder: Path) -> dict[str, Any]:
    """Return all results of a run, without times."""
    state = json.loads((folder / "trainer_state.json").read_text())
    records = [parquet.read_table(file).to_pylist() for file in sorted((folder / "records").iterdir())]
    evaluation = {
        file.name: file.read_bytes() for file in (folder / "evaluation").iterdir() if not file.name.startswith(LOCK)
    }
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "exchanges": (folder / "exchanges.jsonl").read_bytes(),
        "rounds": [_timeless(json.loads(line)) for line in (folder / "rounds.jsonl").read_text().splitlines()],
        "records": records,
        "log": [_timeless(line) for line in state["log_history"]],
        "best": state["best_metric"],
        "evaluation": evaluation,
        "summary": _timeless(json.loads((folder / "summary.json").read_text())),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
        "unfinished": [str(path) for path in folder.rglob("*.tmp")],
    }


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not any(time in key for time in TIMES)}


def run_and_kill(algorithm: str, kills: int, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """Run, kill and resume; yield the result of each kill."""
    whole = work / "whole" / "run"
    whole.parent.mkdir(parents=True)
    ended, phases = run_in_child(algorithm, whole, resume=False)
    if ended != 0:
        raise RuntimeError((whole.parent / "log.txt").read_text())
    expected = results_of(whole)
    places: dict[str, list[int]] = {}
    for number, phase in enumerate(phases):
        places.setdefault(phase, []).append(number)
    rng = random.Random(seed)
    for number in range(kills):
        phase = list(places)[number % len(places)]
        kill_at = rng.choice(places[phase])
        delay = rng.choice([0.0, rng.uniform(1e-6, 3e-3)])
        folder = work / str(number) / "run"
        folder.parent.mkdir()
        ended, _ = run_in_child(algorithm, folder, False, kill_at, delay)
        ends = [ended]
        if number % 3 == 2:
            ends.append(run_in_child(algorithm, folder, True, rng.randrange(len(phases) // 2), delay)[0])
        if ends[-1] != 0:
            ends.append(run_in_child(algorithm, folder, True)[0])
        results = results_of(folder) if ends[-1] == 0 else {}
        differs = [name for name in expected if results.get(name) != expected[name]]
        yield {"kill": number, "phase": phase, "event": kill_at, "ends": ends, "differs": differs}
        if not differs:
            shutil.rmtree(folder.parent)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--algorithm", default="dpo", choices=list(OF_ALGORITHM))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the runs that differ; default: a new folder")
    args = parser.parse_args(argv)
    work = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    start = time.perf_counter()
    by_phase: Counter[str] = Counter()
    wrong = 0
    for result in run_and_kill(args.algorithm, args.kills, args.seed, work):
        by_phase[result["phase"]] += 1
        wrong += bool(result["differs"])
        print(json.dumps(result), flush=True)
    summary = {"algorithm": args.algorithm, "kills": args.kills, "phases": by_phase, "differing": wrong}
    print(json.dumps({**summary, "seconds": round(time.perf_counter() - start)}))
    if wrong:
        print(f"the runs that differ are in {work}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
