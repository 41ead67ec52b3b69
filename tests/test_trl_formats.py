"""What `Records` gives is what plain TRL trainers take, ours aside: text, conversations and token ids."""

import copy
import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import math

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from astra_trl import ASTPrompterSystem, ASTSampler, HFBackend, Records, SamplingParams
from astra_trl.backends import ScriptedBackend

OPENINGS = ["Good morning, how are you today?", "I love gardening", "What did you cook last night?"]


def collect(model, tokenizer) -> Records:
    tester = HFBackend(model, tokenizer, SamplingParams(max_new_tokens=8))
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts[-1])}")
    system = ASTPrompterSystem(tester, target, None, lambda e: [len(x.probe) % 3 / 2 for x in e])
    return ASTSampler(system, OPENINGS, tree_width=2, tree_depth=2).collect(3)


def text_model():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return make_gpt2(tokenizer), tokenizer


def chat_model():
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    tokenizer.pad_token = "<|endoftext|>"
    return make_chat_llama(tokenizer), tokenizer


def labelled(records, format):
    rows = records.transitions(format).map(lambda row: {"label": row["reward"] > 0})
    assert 0 < sum(rows["label"]) < len(rows)
    return rows


TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig, lambda records, format: records.preferences(format)),
    "cpo": (CPOTrainer, CPOConfig, lambda records, format: records.preferences(format)),
    "orpo": (ORPOTrainer, ORPOConfig, lambda records, format: records.preferences(format)),
    "kto": (KTOTrainer, KTOConfig, labelled),
    "sft": (SFTTrainer, SFTConfig, lambda records, format: labelled(records, format).filter(lambda row: row["label"])),
}


@pytest.mark.parametrize("name", list(TRAINERS))
@pytest.mark.parametrize(("format", "make"), [("text", text_model), ("conversational", chat_model)])
def test_trls_trainers_learn_from_them(tmp_path, name, format, make):
    trainer_class, config_class, rows_of = TRAINERS[name]
    model, tokenizer = make()
    rows = rows_of(collect(model, tokenizer), format)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = config_class(
        str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=120,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    # Where TRL would load the reference by the model's id, which one made in memory does not have.
    reference = {"ref_model": copy.deepcopy(model)} if name in ("dpo", "kto") else {}
    trainer = trainer_class(model, args=config, train_dataset=rows, processing_class=tokenizer, **reference)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_ids_are_what_dpos_collator_takes_and_exactly_what_was_sampled():
    model, tokenizer = text_model()
    records = collect(model, tokenizer)
    rows = records.preferences("ids")
    batch = DataCollatorForPreference(pad_token_id=0)(list(rows))
    sampled = {tuple(node.prompt_ids + node.probe_ids) for tree in records.trees for node in tree.nodes()}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        assert tuple(ids[mask.bool()].tolist()) in sampled


def test_text_prompts_encode_to_what_the_tester_saw():
    model, tokenizer = text_model()
    records = collect(model, tokenizer)
    for text, ids in zip(records.transitions(), records.transitions("ids"), strict=True):
        assert tokenizer.decode(ids["prompt_ids"]) == text["prompt"]
        assert tokenizer.decode(ids["completion_ids"], skip_special_tokens=True) == text["completion"]
