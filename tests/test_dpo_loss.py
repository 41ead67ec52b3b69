"""Our records give the losses that TRL gives for the same token ids."""

import re

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from astra_trl import ASTDPOConfig, ASTDPOTrainer, ASTSampler, HFASTSystem, HFBackend, KeywordScorer, SamplingParams
from astra_trl.rollout.records import preference_records

LOSS_TYPES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
PROMPTS = ["Good morning, how are you today?", "soup", "I love gardening", "late again"]


def make_trainer(tmp_path, **config) -> ASTDPOTrainer:
    tokenizer = make_tokenizer()
    sampling = SamplingParams(max_new_tokens=8)
    system = HFASTSystem(
        HFBackend(make_gpt2(tokenizer, 0), tokenizer, sampling),
        HFBackend(make_gpt2(tokenizer, 1), tokenizer, sampling),
        HFBackend(make_gpt2(tokenizer, 2), tokenizer, sampling),
        KeywordScorer(["soup"]),
    )
    config = {"beta": 0.3, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", **config}
    args = ASTDPOConfig(str(tmp_path / "run"), num_train_epochs=1, disable_tqdm=True, **config)
    return ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 2), args)


def sum_logprobs(model, prompt_ids, completion_ids) -> torch.Tensor:
    with torch.no_grad():
        table = model(torch.tensor([prompt_ids + completion_ids])).logits[0].log_softmax(-1)
    start = len(prompt_ids) - 1
    return sum(table[start + i, token] for i, token in enumerate(completion_ids))


def test_records_of_text_that_trl_tokenises_itself_give_trls_loss(tmp_path):
    """The same pairs once through TRL's own preparation and once as our records: one loss."""
    ours = make_trainer(tmp_path)
    tokenizer = ours.processing_class
    rows = [
        {"prompt": "Good morning,", "chosen": " how are you", "rejected": " you are late"},
        {"prompt": "I love", "chosen": " soup with bread", "rejected": " the rain"},
    ]
    plain = DPOTrainer(
        model=make_gpt2(tokenizer, 0),
        ref_model=make_gpt2(tokenizer, 2),
        args=DPOConfig(str(tmp_path / "plain"), beta=0.3, bf16=False, gradient_checkpointing=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    records = [
        {
            "prompt_ids": tokenizer(row["prompt"])["input_ids"],
            "chosen_ids": tokenizer(row["chosen"] + tokenizer.eos_token)["input_ids"],
            "rejected_ids": tokenizer(row["rejected"] + tokenizer.eos_token)["input_ids"],
        }
        for row in rows
    ]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [{key: row[key] for key in columns} for row in plain.train_dataset] == records
    theirs = plain.compute_loss(plain.model, plain.data_collator(list(plain.train_dataset)))
    loss = ours.compute_loss(ours.model, ours.data_collator(records))
    torch.testing.assert_close(loss, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_loss_of_sampled_records_is_the_formula_on_the_sampled_ids(tmp_path, loss_type):
    trainer = make_trainer(tmp_path, loss_type=loss_type)
    records = preference_records(trainer.sampler.grow(PROMPTS, range(len(PROMPTS))))[:6]
    assert len(records) == 6
    tester, baseline = make_gpt2(trainer.processing_class, 0), make_gpt2(trainer.processing_class, 2)
    losses = []
    for record in records:
        ratio = {}
        for side in ("chosen", "rejected"):
            ids = record[f"{side}_ids"]
            of_tester = sum_logprobs(tester, record["prompt_ids"], ids)
            ratio[side] = of_tester - sum_logprobs(baseline, record["prompt_ids"], ids)
            if loss_type == "ipo":
                ratio[side] = ratio[side] / len(ids)
        delta = ratio["chosen"] - ratio["rejected"]
        losses.append(
            (delta - 1 / (2 * 0.3)) ** 2 if loss_type == "ipo" else -torch.nn.functional.logsigmoid(0.3 * delta)
        )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(records))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_of_trl_trains_a_round(tmp_path, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    trainer = make_trainer(
        tmp_path, loss_type=loss_type, label_smoothing=smoothing, pairs_per_round=4, logging_steps=1
    )
    before = trainer.model.transformer.wte.weight.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 1
    assert not torch.equal(before, trainer.model.transformer.wte.weight)


def test_the_list_above_is_trls(tmp_path):
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        make_trainer(tmp_path, loss_type="no such loss", pairs_per_round=4).train()
    assert set(re.findall(r"'(\w+)'", str(caught.value))) == set(LOSS_TYPES)
