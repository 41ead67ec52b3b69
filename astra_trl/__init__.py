"""astra_trl: trains an LLM tester to find, in conversation, what makes a target LLM misbehave. Built on TRL."""

from typing import TYPE_CHECKING

from astra_trl.conversation import Conversation as Conversation
from astra_trl.conversation import Exchange as Exchange
from astra_trl.conversation import Turn as Turn
from astra_trl.errors import InputError as InputError
from astra_trl.lazy import lazy_imports

__version__ = "0.1.0"

# These are imported at first use, because torch, transformers and trl take seconds to import.
if TYPE_CHECKING:
    from astra_trl.backends.api.openai import OpenAIBackend as OpenAIBackend
    from astra_trl.backends.base import SamplingParams as SamplingParams
    from astra_trl.backends.function import FunctionBackend as FunctionBackend
    from astra_trl.backends.hf import HFBackend as HFBackend
    from astra_trl.evaluation import ASTEvaluator as ASTEvaluator
    from astra_trl.evaluation import Evaluation as Evaluation
    from astra_trl.harness import Harness as Harness
    from astra_trl.prompts.base import load_prompts as load_prompts
    from astra_trl.prompts.teaching import load_teaching_pairs as load_teaching_pairs
    from astra_trl.rewards.base import Reward as Reward
    from astra_trl.rewards.credit import Backup as Backup
    from astra_trl.rollout.records import Records as Records
    from astra_trl.rollout.sampler import ASTSampler as ASTSampler
    from astra_trl.scorers.classifier import ClassifierScorer as ClassifierScorer
    from astra_trl.scorers.detoxify import DetoxifyScorer as DetoxifyScorer
    from astra_trl.scorers.judge import JudgeScorer as JudgeScorer
    from astra_trl.scorers.keyword import KeywordScorer as KeywordScorer
    from astra_trl.scorers.llama_guard import LlamaGuardScorer as LlamaGuardScorer
    from astra_trl.scorers.overlap import OverlapScorer as OverlapScorer
    from astra_trl.solvers import DPO as DPO
    from astra_trl.solvers import IPO as IPO
    from astra_trl.solvers import PPO as PPO
    from astra_trl.systems.astprompter import ASTPrompterSystem as ASTPrompterSystem
    from astra_trl.systems.astprompter import HFASTSystem as HFASTSystem
    from astra_trl.systems.astprompter import astprompter_reward as astprompter_reward
    from astra_trl.systems.base import System as System
    from astra_trl.systems.crt import CRTSystem as CRTSystem
    from astra_trl.systems.goals import Goal as Goal
    from astra_trl.systems.malibu import MalibuSystem as MalibuSystem
    from astra_trl.systems.perez import PerezSystem as PerezSystem
    from astra_trl.trainers.dpo import ASTDPOConfig as ASTDPOConfig
    from astra_trl.trainers.dpo import ASTDPOTrainer as ASTDPOTrainer
    from astra_trl.trainers.gfn import ASTGFNConfig as ASTGFNConfig
    from astra_trl.trainers.gfn import ASTGFNTrainer as ASTGFNTrainer
    from astra_trl.trainers.grpo import ASTGRPOConfig as ASTGRPOConfig
    from astra_trl.trainers.grpo import ASTGRPOTrainer as ASTGRPOTrainer
    from astra_trl.trainers.ppo import ASTPPOConfig as ASTPPOConfig
    from astra_trl.trainers.ppo import ASTPPOTrainer as ASTPPOTrainer
    from astra_trl.trainers.rloo import ASTRLOOConfig as ASTRLOOConfig
    from astra_trl.trainers.rloo import ASTRLOOTrainer as ASTRLOOTrainer
    from astra_trl.trainers.sft import ASTSFTConfig as ASTSFTConfig
    from astra_trl.trainers.sft import ASTSFTTrainer as ASTSFTTrainer
    from astra_trl.tree import Node as Node
    from astra_trl.tree import Tree as Tree

__getattr__, __all__ = lazy_imports(__name__)
__all__ += ["Conversation", "Exchange", "InputError", "Turn"]
