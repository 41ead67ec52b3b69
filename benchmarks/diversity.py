"""Weaknesses that each algorithm finds in a sandbox world: `python -m benchmarks.diversity wide --seeds 0 1 2`.

Every run asks the target about as often as DPO's recipe does. The trained tester then holds 700 conversations from
held-out openings. One thread, some minutes per run.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import batched, islice
from pathlib import Path
from typing import Any

from astra_trl.cli.build import Calls, system_of
from astra_trl.cli.parse_train import parse
from astra_trl.evaluation.diversity import diversity
from astra_trl.rollout.run_folder import read_exchanges
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.sandbox import World, named_world
from astra_trl.sandbox.defaults import sandbox_defaults
from astra_trl.tree import Tree
from benchmarks.systems import train

CONVERSATIONS, AT_A_TIME = 700, 350
SUBSAMPLE = 50  # successful probes, whose self-BLEU is measured
# System, algorithm and flags of each run. The rounds of the others are as many as DPO's exchanges allow.
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "gfn": ("astprompter", "gfn", []),
    "dpo": ("astprompter", "dpo", []),
    "grpo": ("astprompter", "grpo", ["--num_train_epochs", "36"]),
    "ppo": ("astprompter", "ppo", ["--num_train_epochs", "28"]),
    "crt": ("crt", "ppo", []),
}
COLUMNS = ("calls", "harmful", "found", "rarest third", "evenness", "least", "self-BLEU", "log-prob.", "area", "seconds")
