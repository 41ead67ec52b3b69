"""GRPO and RLOO before the first update: the policy is the one that the probes were sampled from, so ratios are 1."""

import copy

import pytest
import torch
from conftest import CORPUS, make_gpt2, make_llama, make_qwen2, make_tokenizer
from test_groups import BOTH, make_system, make_trainer, watch_losses

from astra_trl import HFBackend, SamplingParams
from astra_trl.trainers.roles import count_positions, dropouts, switch_dropout_off

# Far apart in length, so that a batch holds rows of much padding beside one of none.
OPENINGS = ["Hi", CORPUS[3], " ".join(CORPUS[:4]), "So?"]
SAMPLING = SamplingParams(max_new_tokens=8, temperature=0.7, top_p=0.9)
MODELS = pytest.mark.parametrize("make", [make_gpt2, make_llama, make_qwen2])


def trained(make, tokenizer, steps=60):
    """A tiny model that has learned the corpus: with random weights, positions count for too little to show."""
    model = make(tokenizer, positions=256).train()
    ids = tokenizer(" ".join(CORPUS), return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def alone(model, prompt, probe):
    """Log-probabilities of a probe's ids in a row of its own, without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + probe])).logits[0, len(prompt) - 1 : -1]
    return (logits / SAMPLING.temperature).log_softmax(-1).gather(1, torch.tensor(probe)[:, None])[:, 0]


def first_step(folder, algorithm, model, tokenizer, **config):
    """What the loss is given, row by row: (prompt, probe, old log-probabilities, the policy's)."""
    system = make_system()
    system.tester = HFBackend(model, tokenizer, SAMPLING)
    trainer = make_trainer(
        folder, algorithm, system, prompts=OPENINGS, learning_rate=0.0, num_train_epochs=1, trees_per_round=4, **config
    )
    seen, rows = watch_losses(trainer), []
    trainer.train()
    for step in seen:
        for row in range(len(step["prompt_ids"])):
            prompt = step["prompt_ids"][row][step["prompt_mask"][row].bool()].tolist()
            mask = step["completion_mask"][row].bool()
            probe = step["completion_ids"][row][mask].tolist()
            old = step["old_per_token_logps" if algorithm == "grpo" else "old_logps"][row]
            rows.append((prompt, probe, old[mask] if algorithm == "grpo" else old, step["policy_logprobs"][row][mask]))
    return rows


@MODELS
@BOTH
def test_the_ratio_is_1_however_long_the_contexts_are(tmp_path, algorithm, make):
    tokenizer = make_tokenizer()
    model = trained(make, tokenizer)
    before = copy.deepcopy(model)
    rows = first_step(tmp_path, algorithm, model, tokenizer)
    lengths = [len(prompt) for prompt, *_ in rows]
    assert max(lengths) > 10 * min(lengths)
    for prompt, probe, old, policy in rows:
        expected = alone(before, prompt, probe)
        torch.testing.assert_close(policy, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(old, expected if algorithm == "grpo" else expected.sum(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", [3, 40])
def test_positions_are_counted_from_a_rows_first_token(padding):
    tokenizer = make_tokenizer()
    model = trained(make_gpt2, tokenizer)
    plain, ids = copy.deepcopy(model), tokenizer(CORPUS[0])["input_ids"]
    rows = torch.tensor([[0] * padding + ids])
    mask = torch.tensor([[0] * padding + [1] * len(ids)])
    with torch.no_grad():
        wanted = plain(torch.tensor([ids])).logits
        assert (plain(rows, attention_mask=mask).logits[:, padding:] - wanted).abs().max() > 0.1
        count_positions(model)
        torch.testing.assert_close(model(rows, attention_mask=mask).logits[:, padding:], wanted, atol=1e-4, rtol=0)
        # What brings positions of its own keeps them.
        own = torch.arange(len(ids))[None] + 5
        torch.testing.assert_close(
            model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), position_ids=own).logits,
            plain(torch.tensor([ids]), position_ids=own).logits,
        )


def with_dropout(make, tokenizer):
    """A model whose modules drop 0.1: of GPT-2 the `Dropout` modules, of Llama what attention keeps as a number."""
    model = trained(make, tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    return model


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
@BOTH
def test_dropout_is_off_unless_it_is_asked_for(tmp_path, algorithm, make, caplog):
    tokenizer = make_tokenizer()
    rows = first_step(tmp_path / "off", algorithm, with_dropout(make, tokenizer), tokenizer)
    difference = max((policy.sum() - old.sum()).abs() for _, _, old, policy in rows)
    assert difference < 1e-3 and "dropout" not in caplog.text
    rows = first_step(tmp_path / "on", algorithm, with_dropout(make, tokenizer), tokenizer, disable_dropout=False)
    assert max((policy.sum() - old.sum()).abs() for _, _, old, policy in rows) > 0.01
    assert "disable_dropout=False leaves it on" in caplog.text


def test_every_dropout_is_switched_off():
    tokenizer = make_tokenizer()
    for make in (make_gpt2, make_llama):
        model = with_dropout(make, tokenizer)
        assert dropouts(model)
        switch_dropout_off(model)
        assert not dropouts(model)
