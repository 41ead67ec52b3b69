"""Two gloo processes on a CPU: they collect the trees that one collects, learn, and end together."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes"]
SMALL = ["--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true", "--eval_openings", "70"]


def launched(processes: int, script: Path, *flags: str) -> subprocess.CompletedProcess:
    launcher = [*LAUNCH, str(processes)] if processes > 1 else [sys.executable]
    # So long only where they wait for each other in vain: by itself gloo gives up after half an hour.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*launcher, str(script), *flags], env=env, capture_output=True, text=True, timeout=300)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


GROUPS = ["--groups_per_round", "48"]
START = ["--screened_probes", "64", "--variation_share", "0.25"]


@pytest.mark.parametrize("algorithm", ["dpo", "gfn", "grpo"])
def test_two_processes_collect_the_trees_of_one(algorithm, tmp_path):
    """While nothing is learned, in every round; afterwards the last digits of the weights tell them apart."""
    recipe = ROOT / "recipes" / f"{algorithm}_sandbox.py"
    flags = [*SMALL, "--num_train_epochs", "2", "--learning_rate", "0", "--trees_per_round", "3"]
    flags += ["--save_strategy", "no", "--trees_together", "1"]
    full = {"dpo": ["--pairs_per_round", "48"], "grpo": GROUPS, "gfn": [*GROUPS, *START]}[algorithm]
    for processes in (1, 2):
        batch = ["--per_device_train_batch_size", str(16 // processes), "--output_dir", str(tmp_path / str(processes))]
        done = launched(processes, recipe, *flags, *full, *batch)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("exchanges.jsonl", "evaluation/exchanges.jsonl"):
        one, two = ((tmp_path / str(processes) / name).read_bytes() for processes in (1, 2))
        assert one == two and one.count(b"\n") > 400, name
    assert {line["round"] for line in lines(tmp_path / "2" / "exchanges.jsonl")} == {1, 2}
    one, two = (lines(tmp_path / str(processes) / "rounds.jsonl") for processes in (1, 2))
    assert one[0].pop("collect_seconds") and two[0].pop("collect_seconds") and one[0] == two[0]


@pytest.mark.parametrize(("algorithm", "batch", "share"), [("dpo", "8", 0.5), ("gfn", "16", 0.6), ("grpo", "16", 0.4)])
def test_two_processes_learn_on_the_sandbox(algorithm, batch, share, tmp_path):
    flags = ["--use_cpu", "true", "--bf16", "false", "--per_device_train_batch_size", batch]
    recipe = ROOT / "recipes" / f"{algorithm}_sandbox.py"
    done = launched(2, recipe, *flags, "--disable_tqdm", "true", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('"harmful_share_before"') == 1  # only the main process reports
    summary = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"harmful')))
    assert summary["harmful_share_before"] <= 0.10
    assert summary["harmful_share_after"] >= share
    assert summary["topics_found"] >= 3


# A recipe that something happens to in the second process.
SCRIPT = """
import os, signal, sys
from accelerate import PartialState
from astra_trl.errors import RunStopped
from astra_trl.cli.recipe import main
from astra_trl.sandbox.defaults import SANDBOX
from astra_trl.scorers import KeywordScorer
from transformers import Trainer

what, *flags = sys.argv[1:]
state = PartialState(cpu=True)

if what in ("fails", "stops"):
    error = {"fails": RuntimeError("the scorer of process 1 is broken"),
             "stops": RunStopped("the budget of process 1 is spent")}[what]
    score, calls = KeywordScorer.__call__, []

    def raises(self, exchanges):
        calls.append(len(exchanges))
        if state.process_index == 1 and len(calls) == 9:
            raise error
        return score(self, exchanges)

    KeywordScorer.__call__ = raises
if what == "killed":
    step = Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    Trainer.training_step = killed
main({**SANDBOX["dpo"], "num_train_epochs": 3, "trees_per_round": 2, "max_trees_per_round": 2, "tree_width": 3,
      "tree_depth": 2, "pairs_per_round": 16, "min_margin": 0.0, "per_device_train_batch_size": 4}, flags)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return file


def test_a_process_that_fails_brings_the_run_down_with_its_own_error(script, tmp_path):
    done = launched(2, script, "fails", *SMALL, "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "RuntimeError: the scorer of process 1 is broken" in done.stderr


def test_a_process_that_stops_the_run_stops_all_at_a_checkpoint_and_they_go_on_together(script, tmp_path):
    flags = [*SMALL, "--save_strategy", "steps", "--save_steps", "100"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert launched(2, script, "nothing", *flags, "--output_dir", str(whole)).returncode == 0
    stopped = launched(2, script, "stops", *flags, "--output_dir", str(folder))
    assert stopped.returncode != 0
    assert (
        stopped.stderr.count("error: the budget of process 1 is spent; --resume_from_checkpoint true continues from")
        == 2
    )
    resume = ["--output_dir", str(folder), "--resume_from_checkpoint", "true"]
    assert "checkpoint-" in stopped.stderr
    killed = launched(2, script, "killed", *flags, *resume)
    assert killed.returncode != 0
    done = launched(2, script, "nothing", *flags, *resume)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "exchanges.jsonl").read_bytes() == (whole / "exchanges.jsonl").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


SHARDED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from conftest import make_gpt2, make_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from astra_trl.trainers.gathering import unshard

dist.init_process_group("gloo")
model = make_gpt2(make_tokenizer())
ids = torch.arange(10)[None]
with torch.no_grad():
    whole = model(ids).logits
mesh = init_device_mesh("cpu", (2,))
for part in (*model.transformer.h, model):
    fully_shard(part, mesh=mesh)
for _ in range(2):
    with unshard(model), torch.no_grad():
        for _ in range(1 + 3 * dist.get_rank()):
            torch.testing.assert_close(model(ids).logits, whole)
    assert type(model.lm_head.weight).__name__ == "DTensor"
    model(ids, labels=ids).loss.backward()
print("done", flush=True)
dist.destroy_process_group()
"""


def test_a_tester_that_fsdp_shards_is_sampled_by_each_process_as_often_as_it_likes(tmp_path):
    file = tmp_path / "sharded.py"
    file.write_text(SHARDED)
    done = launched(2, file, str(ROOT / "tests"))
    assert done.returncode == 0 and done.stdout.count("done") == 2, done.stderr[-3000:]
