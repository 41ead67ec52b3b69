import random
import re
from pathlib import Path

import pytest
import torch
from conftest import EOS, make_gpt2, make_llama, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

import astra_trl
from astra_trl import ASTSampler, HFASTSystem, HFBackend, InputError, KeywordScorer, SamplingParams

GREEDY = SamplingParams(max_new_tokens=8, min_new_tokens=2, temperature=0.0, repetition_penalty=1.1)
PROMPTS = [
    "Good morning, how are you today?",
    "soup",
    "The train was late again, and it rained all day. What did you cook last night?",
    "日本語 😀 naïve",
]


def backends():
    tokenizer = make_tokenizer()
    yield HFBackend(make_gpt2(tokenizer), tokenizer, GREEDY)
    with_bos = make_tokenizer(300, bos=True)
    yield HFBackend(make_llama(with_bos), with_bos, GREEDY)


@pytest.fixture(params=["gpt2", "llama"])
def backend(request):
    return dict(zip(["gpt2", "llama"], backends(), strict=True))[request.param]


def encode(backend, text):
    return backend.tokenizer(text, add_special_tokens=False)["input_ids"]


def logprobs_alone(backend, context, continuation):
    """Log-probabilities of one continuation from one plain forward pass without padding."""
    with torch.no_grad():
        logits = backend.model(torch.tensor([context + continuation])).logits[0].float()
    table = logits.log_softmax(-1)
    return [table[len(context) - 1 + i, token].item() for i, token in enumerate(continuation)]


def test_append_scores_as_a_forward_pass_of_each_row_alone(backend):
    session = backend.open(PROMPTS, seeds=range(4), logprobs=True)
    said = ["hello there", "", "a longer sentence about gardening and soup", "ja"]
    contexts = [row.ids for row in session.rows]
    for context, text, logprobs in zip(contexts, said, session.append(said), strict=True):
        assert logprobs == pytest.approx(logprobs_alone(backend, context, encode(backend, text)), abs=1e-4)
    assert [len(row.ids) for row in session.rows] == [
        len(context) + len(encode(backend, text)) + 1 for context, text in zip(contexts, said, strict=True)
    ]


def test_without_logprobs_append_returns_none(backend):
    assert backend.open(["a"], seeds=[0]).append(["b"]) is None


def test_greedy_rows_continue_as_each_would_alone(backend):
    session = backend.open(PROMPTS, seeds=range(4))
    for context, sample in zip([row.ids for row in session.rows], session.sample(), strict=True):
        config = GenerationConfig(
            do_sample=False, max_new_tokens=8, min_new_tokens=2, repetition_penalty=1.1, pad_token_id=0
        )
        alone = backend.model.generate(torch.tensor([context]), generation_config=config)[0, len(context) :].tolist()
        assert sample.prompt_ids == context
        assert sample.ids == alone
        assert sample.text == backend.tokenizer.decode(alone, skip_special_tokens=True)


def test_sampled_end_of_sequence_stays_in_the_sample_and_out_of_the_context():
    tokenizer = make_tokenizer()
    backend = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=24, temperature=1000.0))
    session = backend.open(["hi"] * 100, seeds=range(100))
    samples = session.sample()
    ended = [sample.ids[-1] == tokenizer.eos_token_id for sample in samples]
    assert 1 <= sum(ended) < 100  # uniform over 320 tokens: about 7 rows of 100
    for sample, end, row in zip(samples, ended, session.rows, strict=True):
        assert tokenizer.eos_token_id not in sample.ids[:-1]
        assert end or len(sample.ids) == 24
        assert EOS not in sample.text
        assert row.ids == sample.prompt_ids + sample.ids[: len(sample.ids) - end] + encode(backend, "\n")


@pytest.mark.parametrize(("make", "bos"), [(make_gpt2, False), (make_llama, True)])
def test_a_row_that_outgrows_the_window_keeps_its_newest_tokens(make, bos):
    tokenizer = make_tokenizer(300, bos=bos)
    backend = HFBackend(make(tokenizer, positions=48), tokenizer, SamplingParams(max_new_tokens=12))
    text = "walks in the park and a pot of soup with bread " * 40
    session = backend.open([text, "short"], seeds=[0, 1], logprobs=True)
    long, short = session.sample()
    whole = tokenizer(text + "\n")["input_ids"]
    kept = 48 - 12
    assert len(long.prompt_ids) == kept
    assert long.prompt_ids == ([tokenizer.bos_token_id, *whole[-kept + 1 :]] if bos else whole[-kept:])
    assert len(short.prompt_ids) < kept
    assert 1 <= len(long.ids) <= 12
    scored = session.append(["hello there", text])  # the second outgrows the window all by itself
    assert len(scored[0]) == len(encode(backend, "hello there"))
    # Scored is what is left of it in front of the response: all but the first token and the separator.
    assert len(scored[1]) == kept - 1 - 1
    assert all(logprob < 0 for logprobs in scored for logprob in logprobs)
    assert all(sample.text for sample in session.sample())


def test_gpt2_grows_deep_trees_from_openings_longer_than_its_window():
    tokenizer, other = make_tokenizer(), make_tokenizer(290)
    sampling = SamplingParams(max_new_tokens=20, min_new_tokens=1)
    system = HFASTSystem(
        HFBackend(make_gpt2(tokenizer, positions=64), tokenizer, sampling),
        HFBackend(make_gpt2(other, seed=1, positions=40), other, sampling),
        None,
        KeywordScorer(["soup"]),
    )
    openings = ["all day " * 300, "hi", " \n x", "😀" * 100, "<|endoftext|>"]
    trees = ASTSampler(system, openings, tree_width=2, tree_depth=4).grow(openings, range(len(openings)))
    for tree in trees:
        nodes = list(tree.nodes())
        assert len(nodes) == 2 + 4 + 8 + 16
        assert all(node.probe_ids and len(node.prompt_ids) + 20 <= 64 for node in nodes)
        assert all(node.exchange.response for node in nodes)
        assert all(node.reward is not None for node in nodes if node.exchange.probe)


def test_no_room_for_a_context_is_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(InputError, match="leaves .* no room for a context in a window of 24 tokens: .* larger window"):
        HFBackend(make_gpt2(tokenizer, positions=24), tokenizer, SamplingParams(max_new_tokens=24))
    with pytest.raises(InputError, match="window of 10 tokens: .* raise max_length"):
        HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=12), max_length=10)


def test_text_that_looks_like_a_special_token_is_text():
    tokenizer = make_tokenizer()
    backend = HFBackend(make_gpt2(tokenizer), tokenizer)
    session = backend.open([f"a{EOS}b"], seeds=[0])
    (row,) = session.rows
    assert tokenizer.eos_token_id not in row.ids
    assert tokenizer.decode(row.ids) == f"a{EOS}b\n"
    session.append([EOS])
    assert tokenizer.eos_token_id not in session.rows[0].ids


def test_the_seed_alone_decides_and_global_state_is_as_it_was_found(backend):
    backend.sampling = SamplingParams(max_new_tokens=8, temperature=1.0)
    backend.model.train()
    backend.model.get_input_embeddings().eval()  # a module that someone froze
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = [s.ids for s in backend.open(PROMPTS, seeds=range(5, 9)).sample()]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert backend.model.training
    assert not backend.model.get_input_embeddings().training
    torch.manual_seed(2)
    assert [s.ids for s in backend.open(PROMPTS, seeds=range(5, 9)).sample()] == first
    assert [s.ids for s in backend.open(PROMPTS, seeds=range(6, 10)).sample()] != first
    session = backend.open(PROMPTS, seeds=range(5, 9))
    assert [s.ids for s in session.sample()] != [s.ids for s in session.sample()]


def test_branch_makes_rows_of_the_children_named_and_leaves_the_session_as_it_was():
    tokenizer = make_tokenizer()
    session = HFBackend(make_gpt2(tokenizer), tokenizer).open(["a", "b"], seeds=[0, 1])
    a, b = session.rows
    children = session.branch([(1, 0), (1, 1), (0, 0)])
    assert children.rows == [b, b, a]
    first, second, third = children.sample()
    assert first.ids != second.ids
    assert session.rows == [a, b]
    assert [sample.ids for sample in session.branch([(0, 0)]).sample()] == [third.ids]


def test_the_adapter_is_off_for_a_role_that_asks_for_it():
    tokenizer = make_tokenizer()
    plain = HFBackend(make_gpt2(tokenizer), tokenizer)
    adapted = get_peft_model(
        make_gpt2(tokenizer), LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    values = {}
    for use_adapter in (True, False):
        session = HFBackend(adapted, tokenizer, use_adapter=use_adapter).open(["hi"], seeds=[0], logprobs=True)
        values[use_adapter] = session.append(["soup and bread"])[0]
    wanted = plain.open(["hi"], seeds=[0], logprobs=True).append(["soup and bread"])[0]
    assert values[False] == pytest.approx(wanted, abs=1e-6)
    assert values[True] != pytest.approx(wanted, abs=1e-3)
    assert all(parameter.requires_grad for name, parameter in adapted.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"stop_strings": "?"},
        {"stop_strings": ("",)},
    ],
)
def test_sampling_params_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_modules_import_only_modules_before_them():
    order = ["dialogue", "sampling", "loading", "masks", "memory", "cache", "model", "decoding", "refeeding", "session"]
    order += ["checks", "backend"]
    folder = Path(astra_trl.__file__).parent / "backends" / "hf"
    assert {file.stem for file in folder.glob("*.py")} == {*order, "__init__"}
    for place, name in enumerate(order):
        # Everywhere in the file: an import in a function or for type checkers alone would hide a circle.
        modules = re.findall(r"astra_trl\.backends\.hf\.(\w+)", (folder / f"{name}.py").read_text())
        assert set(modules) <= set(order[:place]), name
