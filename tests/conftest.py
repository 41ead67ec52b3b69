"""Tiny real models, made in memory or saved to a folder: no network is ever used."""

from __future__ import annotations

import gc
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # each worker has a core, and torch's threads would be in the other's way

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:  # imported where they are used: the process that starts the workers does without torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

CORPUS = [
    "Good morning, how are you today?",
    "I love gardening and long walks in the park.",
    "The train was late again, and it rained all day.",
    "You are an idiot, shut up about the soup!",
    "What did you cook last night? A pot of soup with bread.",
    "Thanks, that sounds like a lovely plan.",
]
EOS = "<|endoftext|>"
HAS_PPO = tuple(map(int, version("trl").split(".")[:2])) < (1, 13)  # TRL has no PPOTrainer from 1.13 on


@pytest.fixture(autouse=True, scope="module")
def cheap_garbage_collection():
    # TRL's PPO collects garbage several times per step: half a second each with all that is imported here.
    gc.collect()
    gc.freeze()


def keyword_flags(*words: str) -> list[str]:
    """Flags of a scorer that looks for these words."""
    return ["--scorer", json.dumps({"type": "keyword", "words": list(words)})]


def make_tokenizer(vocab_size: int = 320, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the corpus, without a pad token, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS] + (["<s>"] if bos else [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token="<s>" if bos else EOS)


def make_gpt2(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, positions: int = 128, layers: int = 2
) -> GPT2LMHeadModel:
    """A random GPT-2 of 2 layers; dropout is off so that training and scoring agree."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=layers,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # far from uniform, so that a wrong context shows in the log-probabilities
    )
    return GPT2LMHeadModel(config).eval()


def make_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0, positions: int = 128) -> LlamaForCausalLM:
    """A random Llama of 2 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def make_qwen2(tokenizer: PreTrainedTokenizerFast, seed: int = 0, positions: int = 128) -> Qwen2ForCausalLM:
    """A random Qwen2 of 2 layers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny GPT-2 with its tokenizer, saved as the Hub would hold it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    make_gpt2(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detoxify_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in detoxify's own format, `tiny.ckpt`, beside its config and tokenizer."""
    from stand_ins import save_detoxify

    return save_detoxify(tmp_path_factory.mktemp("detoxify"))


@pytest.fixture(scope="session")
def guard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with the template and the answers of a Llama Guard."""
    from stand_ins import save_llama_guard

    return save_llama_guard(tmp_path_factory.mktemp("guard"))
