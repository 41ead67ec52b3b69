"""Models with a sliding window: their caches branch, and trees are those grown node by node beyond the window."""

import pytest
import test_engine
import torch
from conftest import make_gpt2, make_llama, make_tokenizer
from test_engine import GREEDY, OPENINGS, SAMPLED, assert_as_grown_alone, make_system
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from astra_trl import HFBackend, SamplingParams
from astra_trl.backends.hf import masks, model
from astra_trl.backends.hf.cache import can_branch

WINDOW = 16
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
}
KINDS = {
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"query_pre_attn_scalar": 8, **MIXED}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, **MIXED}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"use_sliding_window": True, **MIXED}),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig, {"num_local_experts": 2, "num_experts_per_tok": 1, **MIXED}),
}


def maker(kind, attention="sdpa"):
    def make(tokenizer, seed=0, positions=512):
        torch.manual_seed(seed)
        create, configure, fields = KINDS[kind]
        config = configure(
            vocab_size=len(tokenizer),
            max_position_embeddings=positions,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            attn_implementation=attention,
            **SIZES,
            **fields,
        )
        made = create(config).eval()
        for name, parameter in made.named_parameters():
            if "norm" not in name:  # so large that a wrong key shows in every probability
                torch.nn.init.normal_(parameter, std=0.3)
        return made

    return make


@pytest.fixture(params=["mistral", "gemma3", "qwen2", "qwen3"])
def kind(request):
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.mark.parametrize(("sampling", "width", "depth", "max_rows"), [(SAMPLED, 2, 2, 3), (GREEDY, 1, 3, None)])
def test_trees_that_outgrow_the_window_are_those_grown_node_by_node(
    monkeypatch, kind, attention, sampling, width, depth, max_rows
):
    monkeypatch.setitem(test_engine.MAKERS, "sliding", maker(kind, attention))
    system = make_system("sliding", "sliding", sampling)
    assert system.tester.branches and system.tester.model.config._attn_implementation == attention
    assert_as_grown_alone(system, OPENINGS[:2], width, depth, max_rows)


def test_attention_sinks_and_experts_do_not_matter(monkeypatch):
    monkeypatch.setitem(test_engine.MAKERS, "sliding", maker("gpt_oss", "eager"))
    assert_as_grown_alone(make_system("sliding", "gpt2", SAMPLED), OPENINGS[:2], 2, 2)


def wrong_window(window):
    return lambda config: frozenset(size and window for size in masks.attention_windows(config))


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
@pytest.mark.parametrize("fault", ["a token less", "a token more", "columns for positions", "none"])
def test_a_wrong_mask_gives_other_trees(monkeypatch, kind, fault):
    monkeypatch.setitem(test_engine.MAKERS, "sliding", maker(kind))
    system = make_system("sliding", "gpt2", SAMPLED)
    if fault.startswith("a token"):
        monkeypatch.setattr(model, "attention_windows", wrong_window(WINDOW + (1 if fault.endswith("more") else -1)))
    elif fault == "none":
        monkeypatch.setattr(model, "attention_windows", lambda config: frozenset({None}))
    else:

        def by_columns(config, allowed, queries, keys, dtype, windows):
            columns = torch.arange(keys.shape[1]).expand(keys.shape)
            return masks.complete_mask(config, allowed, columns[:, -queries.shape[1] :], columns, dtype, windows)

        monkeypatch.setattr(model, "complete_mask", by_columns)
    with pytest.raises(AssertionError):
        assert_as_grown_alone(system, OPENINGS[:3], 2, 3)


def test_a_model_of_full_attention_and_a_window_that_is_not_outgrown_take_the_same_mask():
    tokenizer = make_tokenizer(300)
    ones = torch.ones((2, 12), dtype=torch.long)
    ones[0, :3] = 0
    full = HFBackend(make_llama(tokenizer), tokenizer).attention_mask(ones, 4)
    for name in ("mistral", "gemma3"):
        backend = HFBackend(maker(name)(tokenizer), tokenizer)
        assert torch.equal(backend.attention_mask(ones, 4), full)
        beyond = backend.attention_mask(torch.ones((2, 17), dtype=torch.long), 1)
        sliding = beyond if name == "mistral" else beyond["sliding_attention"]
        assert sliding[0, 0, 0].tolist() == [False] + [True] * 16
        if name == "gemma3":
            assert beyond["full_attention"].all()


def test_masks_follow_a_new_implementation_and_a_new_model():
    tokenizer = make_tokenizer(300)
    backend = HFBackend(maker("mistral")(tokenizer), tokenizer)
    mask = torch.ones((1, 20), dtype=torch.long)
    assert backend.attention_mask(mask, 1).dtype == torch.bool
    backend.model.set_attn_implementation("eager")
    assert backend.attention_mask(mask, 1).dtype == torch.float32
    backend.model.config._attn_implementation = "flash_attention_2"
    assert backend.attention_mask(mask, 1) is mask and not backend.branches  # fed again
    backend.model = make_gpt2(tokenizer)
    assert backend.attention_mask(mask, 1).shape == (1, 1, 1, 20) and backend.branches


def test_two_sizes_of_windows_have_no_place_in_one_mask(monkeypatch):
    config = LlamaConfig(attn_implementation="sdpa")
    assert can_branch(config) and masks.takes_complete_masks(config)
    monkeypatch.setattr(masks, "attention_windows", lambda config: frozenset({None, 8, 16}))
    assert not masks.takes_complete_masks(config)


def test_a_sliding_window_model_feeds_no_context_again(monkeypatch):
    tokenizer = make_tokenizer(300)
    backend = HFBackend(maker("gemma3")(tokenizer), tokenizer, SamplingParams(max_new_tokens=4, temperature=0.0))
    session = backend.open(["all day long " * 5], seeds=[0])
    session.sample()
    widths = []
    forward = backend.forward
    backend.forward = lambda **inputs: (widths.append(inputs["input_ids"].shape[1]), forward(**inputs))[1]
    session.append(["soup"])
    session.sample()
    assert max(widths) < 8
