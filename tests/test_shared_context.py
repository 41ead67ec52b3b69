"""Losses and gradients with a context that is computed once, against TRL's own pass over the same batch."""

import copy
import logging

import pytest
import torch
from conftest import CORPUS, make_gpt2, make_llama, make_qwen2, make_tokenizer
from peft import LoraConfig, PromptTuningConfig
from test_dpo_loss import LOSS_TYPES
from test_first_step import OPENINGS, trained
from test_groups import BOTH, hand_made
from test_groups import make_trainer as make_groups_trainer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from astra_trl import ASTDPOConfig, ASTDPOTrainer, ASTPrompterSystem, ASTSampler, HFBackend, SamplingParams
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards import Harm, Reward
from astra_trl.rollout.records import preference_records

SAMPLING = SamplingParams(max_new_tokens=8, temperature=0.7, top_p=0.9)
LORA = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False}
TOKENIZER = make_tokenizer()
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "max_position_embeddings": 256, "vocab_size": len(TOKENIZER), "head_dim": 16}
WINDOW = 12  # shorter than most contexts


def make_mistral(tokenizer, positions=256):
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=WINDOW)).eval()


def make_gemma3(tokenizer, positions=256):
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, sliding_window=WINDOW, layer_types=kinds)).eval()


MODELS = {"gpt2": make_gpt2, "llama": make_llama, "qwen2": make_qwen2, "mistral": make_mistral, "gemma3": make_gemma3}
EXACT = ["gpt2", "llama", "qwen2"]
_TRAINED = {}


def model_of(kind, attention="sdpa"):
    """A model that has learned the corpus: with random weights, a wrong position or mask would change too little."""
    if kind not in _TRAINED:
        _TRAINED[kind] = trained(MODELS[kind], TOKENIZER)
    model = copy.deepcopy(_TRAINED[kind])
    model.set_attn_implementation(attention)
    return model


def make_system(model):
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts[-1])}")
    reward = Reward({"harm": (1.0, Harm())})
    return ASTPrompterSystem(HFBackend(model, TOKENIZER, SAMPLING), target, None, hand_made, reward=reward)


def adapter(config):
    """A new config each time, as peft completes it for the model."""
    if config is None:
        return None
    return PromptTuningConfig(**config) if "num_virtual_tokens" in config else LoraConfig(**config)


def make_dpo(folder, model, **config):
    peft_config = adapter(config.pop("lora", None))
    config = {"gradient_checkpointing": False, "report_to": "none", "beta": 0.3, "save_strategy": "no", **config}
    args = ASTDPOConfig(str(folder), num_train_epochs=1, trees_per_round=4, disable_tqdm=True, **config)
    return ASTDPOTrainer(ASTSampler(make_system(model), OPENINGS, 4, 2), args, peft_config=peft_config)


def gradients(trainer, compute):
    """The loss and the gradients of all trained parameters."""
    trainer.model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal(shared, own, tolerance=1e-5):
    (loss, grads), (own_loss, own_grads) = shared, own
    assert loss.isfinite() and grads.keys() == own_grads.keys()
    torch.testing.assert_close(loss, own_loss, rtol=tolerance, atol=tolerance)
    largest = max(gradient.abs().max() for gradient in own_grads.values())
    assert largest > 0
    for name, gradient in grads.items():
        difference = (gradient - own_grads[name]).abs().max()
        assert difference <= tolerance * largest, (name, float(difference / largest))


def both_ways(trainer, compute):
    """Losses and gradients of a batch with the shared context, and with TRL's own pass."""
    shared = trainer._shared
    assert shared is not None
    forward, tokens = [], []
    hook = trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: tokens.append(args[0].numel())
    )
    forward.append(gradients(trainer, compute))
    few, tokens[:] = sum(tokens), []
    trainer._shared = None
    forward.append(gradients(trainer, compute))
    trainer._shared = shared
    hook.remove()
    assert few < 0.85 * sum(tokens)  # so it was another pass
    return forward


def dpo_both_ways(trainer):
    trees = trainer.sampler.grow(OPENINGS, range(len(OPENINGS)))
    records = preference_records(trees)[:6]
    lengths = [len(record["prompt_ids"]) for record in records]
    assert len(records) == 6 and max(lengths) > 3 * min(lengths)
    batch = trainer.data_collator(records)
    trainer.model.train()
    return both_ways(trainer, lambda: trainer.compute_loss(trainer.model, dict(batch)))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", EXACT)
def test_dpo_of_every_architecture(tmp_path, kind, checkpointing, lora):
    trainer = make_dpo(tmp_path, model_of(kind), gradient_checkpointing=checkpointing, lora=lora)
    assert_equal(*dpo_both_ways(trainer))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_dpo_of_every_loss_type(tmp_path, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    trainer = make_dpo(tmp_path, model_of("llama"), loss_type=loss_type, label_smoothing=smoothing)
    assert_equal(*dpo_both_ways(trainer))


@pytest.mark.parametrize(
    "config",
    [
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"f_divergence_type": "js_divergence"},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]},
        {"pad_to_multiple_of": 16},
    ],
    ids=lambda config: next(iter(config)),
)
def test_dpo_of_other_settings_of_the_loss(tmp_path, config):
    trainer = make_dpo(tmp_path, model_of("llama"), **config)
    assert_equal(*dpo_both_ways(trainer))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt2"])
def test_windows_that_slide_and_both_kinds_of_attention(tmp_path, kind, attention):
    assert_equal(*dpo_both_ways(make_dpo(tmp_path, model_of(kind, attention))))


@pytest.mark.parametrize("kind", EXACT)
def test_bfloat16_within_its_own_accuracy(tmp_path, kind):
    trainer = make_dpo(tmp_path, model_of(kind).to(torch.bfloat16))
    assert_equal(*dpo_both_ways(trainer), tolerance=0.1)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@BOTH
def test_groups_of_every_architecture(tmp_path, algorithm, kind, lora):
    compare_steps(tmp_path, algorithm, kind, lora=lora, gradient_checkpointing=kind == "llama")


@pytest.mark.parametrize(
    "config",
    [
        *({"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")),
        {"importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.5},
        {"delta": 1.5},
    ],
    ids=lambda config: str(next(iter(config.values()))),
)
def test_grpo_of_every_loss_type(tmp_path, config):
    compare_steps(tmp_path, "grpo", "qwen2", **config)


def compare_steps(folder, algorithm, kind, **config):
    """Compare the steps of a round in which TRL's own code prepares the batches, the reference included."""
    system = make_system(model_of(kind))
    config = {"beta": 0.1, "num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.0, **config}
    trainer = make_groups_trainer(
        folder,
        algorithm,
        system,
        prompts=OPENINGS,
        trees_per_round=2,
        steps_per_generation=2,
        peft_config=adapter(config.pop("lora", None)),
        **config,
    )
    loss_of, reference_of, compared = trainer.compute_loss, trainer._get_per_token_logps_and_entropies, []

    def compare(model, inputs, *args, **kwargs):
        compared.append(both_ways(trainer, lambda: loss_of(model, inputs, *args, **kwargs)))
        assert_equal(*compared[-1])
        return loss_of(model, inputs, *args, **kwargs)

    def compare_reference(model, ids, mask, keep, *args, **kwargs):
        first = reference_of(model, ids, mask, keep, *args, **kwargs)
        shared, trainer._shared = trainer._shared, None
        own = reference_of(model, ids, mask, keep, *args, **kwargs)
        trainer._shared = shared
        kept = mask[:, -keep:].bool()
        torch.testing.assert_close(first[0][kept], own[0][kept], rtol=0, atol=1e-4)
        return first

    trainer.compute_loss = compare
    trainer._get_per_token_logps_and_entropies = compare_reference
    trainer.train()
    assert len(compared) >= 2


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_reference_columns_are_trls(tmp_path, lora):
    trainer = make_dpo(tmp_path, model_of("gpt2"), lora=lora, pairs_per_round=12)
    trainer.train()
    records = trainer.train_dataset.records
    trainer._shared = None
    for record in records:
        inputs = trainer.data_collator([{key: record[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}])
        own = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, inputs)
        got = torch.tensor([record["ref_chosen_logps"], record["ref_rejected_logps"]])
        torch.testing.assert_close(got, torch.cat(own), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bf16", [None, True])
def test_mixed_precision_is_no_reason_to_compute_contexts_again(tmp_path, bf16, caplog):
    trainer = make_dpo(tmp_path, model_of("llama"), bf16=bf16, use_cpu=True)
    assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")  # on a CPU only if asked for
    trainer.train()
    assert trainer._shared.is_confirmed and "passes through the model again" not in caplog.text


def test_training_gives_the_same_tester(tmp_path):
    testers = []
    for name, shared in (("shared", True), ("own", False)):
        trainer = make_dpo(tmp_path / name, model_of("llama"), shared_context=shared, learning_rate=1e-3)
        assert (trainer._shared is None) == (not shared)
        trainer.train()
        assert ("ref_chosen_logps" in trainer.train_dataset.records[0]) == shared
        testers.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    torch.testing.assert_close(*map(torch.tensor, testers), rtol=1e-3, atol=1e-4)


def test_siblings_stay_in_one_batch(tmp_path):
    trainer = make_groups_trainer(
        tmp_path, "grpo", make_system(model_of("llama")), prompts=OPENINGS, num_train_epochs=1,
        per_device_train_batch_size=4, steps_per_generation=4, trees_per_round=4,
    )  # fmt: skip
    loss_of, contexts = trainer.compute_loss, []

    def watch(model, inputs, *args, **kwargs):
        contexts.append({tuple(row.tolist()) for row in inputs["prompt_ids"]})
        return loss_of(model, inputs, *args, **kwargs)

    trainer.compute_loss = watch
    trainer.train()
    assert len(contexts) >= 8 and all(len(batch) == 1 for batch in contexts)


class IgnoresPositions(type(make_llama(TOKENIZER))):
    """A model whose decoder ignores `position_ids` and `attention_mask`."""

    def __init__(self, config):
        super().__init__(config)
        forward, left_out = self.model.forward, {"position_ids": None, "attention_mask": None}
        self.model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, **left_out})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.set_attn_implementation("flex_attention"), "flex_attention attention takes no 4-D mask"),
        (lambda model: setattr(model.model.layers[0].self_attn, "attention_dropout", 0.1), "dropout is on"),
    ],
)
def test_what_cannot_share_takes_trls_pass_and_says_so_once(tmp_path, change, reason, caplog):
    model = model_of("llama")
    change(model)
    with caplog.at_level(logging.WARNING, "astra_trl"):
        trainer = make_dpo(tmp_path, model, disable_dropout=False)
    assert (
        trainer._shared is None and caplog.text.count("passes through the model again") == 1 and reason in caplog.text
    )


def test_a_model_that_gives_other_numbers_takes_trls_pass(tmp_path, caplog):
    known = model_of("llama")
    model = IgnoresPositions(known.config)
    model.load_state_dict(known.state_dict())
    trainer = make_dpo(tmp_path, model)
    with caplog.at_level(logging.WARNING, "astra_trl"):
        trainer.train()
    assert trainer._shared is None and caplog.text.count("other log-probabilities for packed rows") == 1
    assert trainer.state.global_step > 0 and "ref_chosen_logps" not in trainer.train_dataset.records[0]


def test_virtual_tokens_take_trls_pass(tmp_path, caplog):
    config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    with caplog.at_level(logging.WARNING, "astra_trl"):
        trainer = make_dpo(tmp_path, model_of("llama"), lora=config)
    assert trainer._shared is None and "the adapter depends on the beginning of each row" in caplog.text


def test_the_corpus_is_long_enough():
    assert max(len(TOKENIZER(text)["input_ids"]) for text in CORPUS) > WINDOW
