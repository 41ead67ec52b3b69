"""ASTRA-RL's documented quick start, and its loop without a trainer, with the package's name changed."""

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import trl
from conftest import make_gpt2, make_tokenizer
from peft import LoraConfig, get_peft_model

import astra_trl.datasets
from astra_trl import DPO, IPO, PPO, ASTDPOTrainer, ASTEvaluator, ASTSampler, Harness, HFBackend, InputError
from astra_trl import KeywordScorer, SamplingParams
from astra_trl.errors import MissingExtra
from astra_trl.ext.transformers import HFASTSystem
from astra_trl.prompts import base
from astra_trl.sandbox import load_world
from astra_trl.training import Trainer, TrainingConfiguration

HAS_PPO = trl.__version__ < "1.13"
SAMPLING = SamplingParams(max_new_tokens=6)

QUICK_START = """
from torch.optim import AdamW
from astra_trl import ASTSampler, DPO, DetoxifyScorer, Harness
from astra_trl.ext.transformers import HFASTSystem
from astra_trl.training import Trainer, TrainingConfiguration
from astra_trl.datasets import CONVOKIT_REDDIT_TRAIN, CONVOKIT_REDDIT_DEV

DEVICE = "cuda"
system = HFASTSystem("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", DetoxifyScorer(), DEVICE)
sampler = ASTSampler(system, CONVOKIT_REDDIT_TRAIN, tree_width=4, tree_depth=5)
solver = DPO(system)
optimizer = AdamW(system.parameters(), lr=1e-5)
config = TrainingConfiguration()
trainer = Trainer(config, sampler, solver)
trainer.train()
"""  # noqa: E501
