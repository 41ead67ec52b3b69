"""astra_trl: trains an LLM tester to find, in conversation, what makes a target LLM misbehave. Built on TRL."""

from typing import TYPE_CHECKING

from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.errors import InputError
from astra_trl.lazy import lazy_names

if TYPE_CHECKING:
    from astra_trl.backends.api.openai import OpenAIBackend
    from astra_trl.backends.base import SamplingParams
    from astra_trl.backends.function import FunctionBackend
    from astra_trl.backends.hf import HFBackend
    from astra_trl.evaluation import ASTEvaluator, Evaluation
    from astra_trl.harness import Harness
    from astra_trl.prompts.base import load_prompts
    from astra_trl.prompts.teaching import load_teaching_pairs
    from astra_trl.rewards.base import Reward
    from astra_trl.rewards.credit import Backup
    from astra_trl.rollout.records import Records
    from astra_trl.rollout.sampler import ASTSampler
    from astra_trl.scorers.classifier import ClassifierScorer
    from astra_trl.scorers.detoxify import DetoxifyScorer
    from astra_trl.scorers.judge import JudgeScorer
    from astra_trl.scorers.keyword import KeywordScorer
    from astra_trl.scorers.llama_guard import LlamaGuardScorer
    from astra_trl.scorers.overlap import OverlapScorer
    from astra_trl.solvers import DPO, IPO, PPO
    from astra_trl.systems.astprompter import ASTPrompterSystem, HFASTSystem, astprompter_reward
    from astra_trl.systems.base import System
    from astra_trl.systems.crt import CRTSystem
    from astra_trl.systems.goals import Goal
    from astra_trl.systems.malibu import MalibuSystem
    from astra_trl.systems.perez import PerezSystem
    from astra_trl.trainers.dpo import ASTDPOConfig, ASTDPOTrainer
    from astra_trl.trainers.grpo import ASTGRPOConfig, ASTGRPOTrainer
    from astra_trl.trainers.ppo import ASTPPOConfig, ASTPPOTrainer
    from astra_trl.trainers.rloo import ASTRLOOConfig, ASTRLOOTrainer
    from astra_trl.trainers.sft import ASTSFTConfig, ASTSFTTrainer
    from astra_trl.tree import Node, Tree

__version__ = "0.1.0"

# Loaded when first asked for: torch, transformers and trl take seconds to import.
_PLACES = {
    "ASTDPOConfig": "trainers.dpo",
    "ASTDPOTrainer": "trainers.dpo",
    "ASTEvaluator": "evaluation",
    "ASTGRPOConfig": "trainers.grpo",
    "ASTGRPOTrainer": "trainers.grpo",
    "ASTPPOConfig": "trainers.ppo",
    "ASTPPOTrainer": "trainers.ppo",
    "ASTPrompterSystem": "systems.astprompter",
    "ASTRLOOConfig": "trainers.rloo",
    "ASTRLOOTrainer": "trainers.rloo",
    "ASTSFTConfig": "trainers.sft",
    "ASTSFTTrainer": "trainers.sft",
    "ASTSampler": "rollout.sampler",
    "Backup": "rewards.credit",
    "CRTSystem": "systems.crt",
    "ClassifierScorer": "scorers.classifier",
    "DPO": "solvers",
    "DetoxifyScorer": "scorers.detoxify",
    "Evaluation": "evaluation",
    "FunctionBackend": "backends.function",
    "Goal": "systems.goals",
    "HFASTSystem": "systems.astprompter",
    "HFBackend": "backends.hf",
    "Harness": "harness",
    "IPO": "solvers",
    "JudgeScorer": "scorers.judge",
    "KeywordScorer": "scorers.keyword",
    "LlamaGuardScorer": "scorers.llama_guard",
    "MalibuSystem": "systems.malibu",
    "Node": "tree",
    "OpenAIBackend": "backends.api.openai",
    "OverlapScorer": "scorers.overlap",
    "PPO": "solvers",
    "PerezSystem": "systems.perez",
    "Records": "rollout.records",
    "Reward": "rewards.base",
    "SamplingParams": "backends.base",
    "System": "systems.base",
    "Tree": "tree",
    "astprompter_reward": "systems.astprompter",
    "load_prompts": "prompts.base",
    "load_teaching_pairs": "prompts.teaching",
}

__all__ = [
    "DPO",
    "IPO",
    "PPO",
    "ASTDPOConfig",
    "ASTDPOTrainer",
    "ASTEvaluator",
    "ASTGRPOConfig",
    "ASTGRPOTrainer",
    "ASTPPOConfig",
    "ASTPPOTrainer",
    "ASTPrompterSystem",
    "ASTRLOOConfig",
    "ASTRLOOTrainer",
    "ASTSFTConfig",
    "ASTSFTTrainer",
    "ASTSampler",
    "Backup",
    "CRTSystem",
    "ClassifierScorer",
    "Conversation",
    "DetoxifyScorer",
    "Evaluation",
    "Exchange",
    "FunctionBackend",
    "Goal",
    "HFASTSystem",
    "HFBackend",
    "Harness",
    "InputError",
    "JudgeScorer",
    "KeywordScorer",
    "LlamaGuardScorer",
    "MalibuSystem",
    "Node",
    "OpenAIBackend",
    "OverlapScorer",
    "PerezSystem",
    "Records",
    "Reward",
    "SamplingParams",
    "System",
    "Tree",
    "Turn",
    "astprompter_reward",
    "load_prompts",
    "load_teaching_pairs",
]

__getattr__ = lazy_names(__name__, _PLACES)
