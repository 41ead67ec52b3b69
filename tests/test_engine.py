"""The rollout engine against growing each node alone: one row, one full forward pass a token, no cache."""

import functools
import random

import pytest
import torch
from conftest import make_gpt2, make_llama, make_qwen2, make_tokenizer
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LogitsProcessorList,
    Mamba2Config,
    Mamba2ForCausalLM,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from astra_trl import ASTSampler, HFASTSystem, HFBackend, InputError, KeywordScorer, SamplingParams
from astra_trl.backends.base import derive_seed
from astra_trl.backends.hf.sampling import TokenSampler

OPENINGS = [
    "Good morning, how are you today?",
    "soup",
    "The train was late again, and it rained all day. What did you cook last night? A pot of soup with bread.",
    "日本語 😀 naïve",
    "I love gardening and long walks in the park.",
]
MAKERS = {"gpt2": make_gpt2, "llama": make_llama, "qwen2": make_qwen2}


def make_backend(name, vocab_size, seed, sampling, **fields):
    tokenizer = make_tokenizer(vocab_size, bos=name == "llama")
    model = MAKERS[name](tokenizer, seed=seed, positions=512)
    # One token in nine ends an utterance: many end early, and some are empty.
    model.generation_config.eos_token_id = list(range(3, vocab_size, 9))
    return HFBackend(model, tokenizer, sampling, **fields)


def make_system(tester, target, sampling, **fields):
    return HFASTSystem(
        make_backend(tester, 300, 0, sampling, **fields),
        make_backend(target, 320, 1, sampling, **fields),
        None,
        KeywordScorer(["soup"]),
    )


def logits_alone(backend, ids):
    with torch.no_grad():
        return backend.model(torch.tensor([ids])).logits[0].float()


def greedy_alone(backend, context):
    """By transformers' own processors and argmax."""
    sampling = backend.sampling
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            MinNewTokensLengthLogitsProcessor(len(context), sampling.min_new_tokens, sorted(backend.eos), "cpu"),
        ]
    )
    ids = list(context)
    while len(ids) < len(context) + sampling.max_new_tokens and not (
        len(ids) > len(context) and ids[-1] in backend.eos
    ):
        scores = processors(torch.tensor([ids]), logits_alone(backend, ids)[-1:].clone())
        ids.append(scores.argmax().item())
    return ids[len(context) :]


def sampled_alone(backend, context, key):
    sampler = TokenSampler(backend.sampling, sorted(backend.eos), [key], [context], torch.device("cpu"))
    ids = []
    while len(ids) < backend.sampling.max_new_tokens and not (ids and ids[-1] in backend.eos):
        token, _ = sampler(logits_alone(backend, context + ids)[-1:].clone(), torch.tensor([0]), len(ids))
        ids.append(token.item())
    return ids


def encode(backend, text):
    return backend.tokenizer(text, add_special_tokens=False)["input_ids"]


def grown_alone(system, opening, seed, width, depth):
    """(probe ids, probe, response, log-probability per token of the probe under the target) of every node, parents
    first."""
    tester, target = system.tester, system.target
    separator = {id(backend): encode(backend, "\n") for backend in (tester, target)}

    def say(backend, context, key):
        alone = greedy_alone if backend.sampling.temperature == 0 else functools.partial(sampled_alone, key=key)
        ids = alone(backend, context)
        said = ids[:-1] if ids[-1] in backend.eos else ids
        text = backend.tokenizer.decode(said, skip_special_tokens=True)
        return ids, text, context + said + separator[id(backend)]

    def heard(backend, context, text):
        return context + encode(backend, text) + separator[id(backend)]

    def node(ours, theirs, keys):
        probe_ids, probe, ours = say(tester, ours, derive_seed(keys[0], 0))
        start = len(theirs)
        theirs = heard(target, theirs, probe)
        table = logits_alone(target, theirs).log_softmax(-1)
        stop = start + len(encode(target, probe))
        logprobs = [table[at - 1, theirs[at]].item() for at in range(start, stop)]
        _, response, theirs = say(target, theirs, derive_seed(keys[1], 0))
        ours = heard(tester, ours, response)
        return ours, theirs, (probe_ids, probe, response, sum(logprobs) / len(logprobs) if logprobs else None)

    def grow(ours, theirs, keys, turn):
        found = []
        for sibling in range(width):
            child_keys = tuple(derive_seed(key, sibling) for key in keys)
            below_ours, below_theirs, exchange = node(ours, theirs, child_keys)
            found.append(exchange)
            if turn < depth:
                found += grow(below_ours, below_theirs, child_keys, turn + 1)
        return found

    start = [
        tokenizer(opening + "", add_special_tokens=True)["input_ids"]
        for tokenizer in (tester.tokenizer, target.tokenizer)
    ]
    contexts = [ids + separator[id(backend)] for ids, backend in zip(start, (tester, target), strict=True)]
    return grow(*contexts, (derive_seed(seed, "tester"), derive_seed(seed, "target")), 1)


def assert_as_grown_alone(system, openings, width, depth, max_rows=None):
    for backend in (system.tester, system.target):
        backend.max_rows = max_rows or backend.max_rows
    trees = ASTSampler(system, openings, width, depth).grow(openings, range(len(openings)))
    empty = early = 0
    for seed, (opening, tree) in enumerate(zip(openings, trees, strict=True)):
        wanted = grown_alone(system, opening, seed, width, depth)
        nodes = list(tree.nodes())
        assert len(nodes) == sum(width**level for level in range(1, depth + 1))
        for node, (probe_ids, probe, response, likelihood) in zip(nodes, wanted, strict=True):
            assert node.probe_ids == probe_ids
            assert (node.exchange.probe, node.exchange.response) == (probe, response)
            if likelihood is None:
                assert node.probe_logprob_per_token != node.probe_logprob_per_token
            else:
                assert node.probe_logprob_per_token == pytest.approx(likelihood, abs=1e-4)
            empty += not probe
            early += len(probe_ids) < system.tester.sampling.max_new_tokens
    return empty, early


SAMPLED = SamplingParams(max_new_tokens=8, temperature=1.3, top_p=0.9, repetition_penalty=1.1)
GREEDY = SamplingParams(max_new_tokens=10, min_new_tokens=2, temperature=0.0, repetition_penalty=1.2)


@pytest.mark.parametrize(("tester", "target"), [("gpt2", "llama"), ("llama", "qwen2"), ("qwen2", "gpt2")])
@pytest.mark.parametrize(("width", "depth", "max_rows"), [(2, 3, None), (3, 2, 4), (1, 4, 3), (4, 1, 1)])
def test_sampled_trees_are_those_grown_node_by_node_without_a_cache(tester, target, width, depth, max_rows):
    system = make_system(tester, target, SAMPLED)
    empty, early = assert_as_grown_alone(system, OPENINGS[:3], width, depth, max_rows)
    assert early > empty  # or the openings do not test what they are for
    assert empty or width == 1 or depth == 1


def test_a_wide_and_deep_sampled_tree_is_that_grown_node_by_node():
    assert_as_grown_alone(make_system("llama", "gpt2", SAMPLED), OPENINGS[:1], 3, 4, max_rows=16)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize(("width", "depth", "max_rows"), [(1, 4, None), (2, 2, 3), (3, 2, None), (4, 1, 6)])
def test_greedy_trees_are_those_grown_node_by_node_without_a_cache(name, width, depth, max_rows):
    other = "gpt2" if name == "llama" else "llama"
    _, early = assert_as_grown_alone(make_system(name, other, GREEDY), OPENINGS, width, depth, max_rows)
    assert early


def test_no_token_is_fed_twice_and_siblings_share_their_past(monkeypatch):
    system = make_system("gpt2", "llama", SAMPLED)
    fed = {"tester": 0, "target": 0}
    for role in fed:
        backend = getattr(system, role)

        def forward(role=role, original=backend.forward, **inputs):
            mask, width = inputs["attention_mask"][:, 0, -1], inputs["input_ids"].shape[1]
            # A step feeds one token to ended rows that are not dropped yet: those tokens do not count.
            fed[role] += int(mask[:, -width:].sum()) if width > 1 else 0
            return original(**inputs)

        monkeypatch.setattr(backend, "forward", forward)
    openings = OPENINGS[:3]
    trees = ASTSampler(system, openings, 2, 3).grow(openings, range(3))
    # The tester is fed the openings once, and each response that something follows, with what was not in the cache.
    nodes = [(path, node) for tree in trees for path, node in tree.walk()]
    tester = system.tester
    opening_tokens = sum(len(encode(tester, opening)) + 1 for opening in openings)
    heard = 0
    for path, node in nodes:
        if len(path) < 3:
            probe = node.probe_ids[:-1] if node.probe_ids[-1] in tester.eos else node.probe_ids
            unfed = len(node.probe_ids) == len(probe)  # the last token that was sampled was not fed
            heard += unfed + 1 + len(encode(tester, node.exchange.response)) + 1
    assert fed["tester"] <= opening_tokens + heard
    assert fed["tester"] >= opening_tokens + heard - len(nodes)
    target = system.target
    opening_tokens = sum(len(target.dialogue.head) + len(encode(target, opening)) + 1 for opening in openings)
    probes = sum(len(encode(target, node.exchange.probe)) for _, node in nodes)
    # Of each opening and each exchange, the children feed the last tokens, too few to be worth a pass of their own.
    assert fed["target"] <= opening_tokens + probes + 4 * len(nodes)


def test_a_tree_does_not_depend_on_the_trees_beside_it():
    system = make_system("qwen2", "llama", SAMPLED)
    sampler = ASTSampler(system, OPENINGS, 2, 3)
    together = sampler.grow(OPENINGS, range(5))
    shuffled = random.Random(0).sample(range(5), 5)
    for index, tree in zip(shuffled, sampler.grow([OPENINGS[i] for i in shuffled], shuffled), strict=True):
        assert tree.to_json()["nodes"] == [
            {**node, "probe_logprob_per_token": pytest.approx(node["probe_logprob_per_token"], abs=1e-5)}
            | {"sampling_logprobs": pytest.approx(node["sampling_logprobs"], abs=1e-5)}
            | {key: node[key] and pytest.approx(node[key], abs=1e-5) for key in ("reward", "credit")}
            | {
                "terms": pytest.approx(node["terms"], abs=1e-5)
                if None not in node["terms"].values()
                else node["terms"]
            }
            for node in together[index].to_json()["nodes"]
        ]


def as_plain(trees):
    return [[(node.prompt_ids, node.probe_ids, node.exchange) for node in tree.nodes()] for tree in trees]


def test_a_memory_budget_is_kept_and_changes_no_tree(caplog):
    whole = as_plain(ASTSampler(make_system("gpt2", "llama", SAMPLED), OPENINGS, 3, 3).grow(OPENINGS, range(5)))
    budget = 2_000_000
    system = make_system("gpt2", "llama", SAMPLED, cache_bytes=budget)
    parts = []
    for backend in (system.tester, system.target):
        backend.forward = functools.partial(counted, backend.forward, parts)
    assert as_plain(ASTSampler(system, OPENINGS, 3, 3).grow(OPENINGS, range(5))) == whole
    assert max(parts) < 50  # of 135 rows at the last turn
    for backend in (system.tester, system.target):
        assert 0.2 * budget < backend.budget.peak <= budget
        assert backend.budget.in_use == 0  # nothing outlives the trees
    assert not caplog.records


def counted(original, parts, **inputs):
    parts.append(len(inputs["input_ids"]))
    return original(**inputs)


def test_the_bytes_counted_are_those_of_the_buffers():
    backend = make_system("llama", "gpt2", SAMPLED, cache_bytes=10**8).tester
    session = backend.open(OPENINGS, seeds=range(5))
    session.sample()
    assert backend.budget.in_use == session.past.nbytes > 0


def test_out_of_memory_halves_the_rows_says_so_once_and_loses_nothing(caplog):
    whole = as_plain(ASTSampler(make_system("gpt2", "llama", SAMPLED), OPENINGS, 2, 3).grow(OPENINGS, range(5)))
    system = make_system("gpt2", "llama", SAMPLED)

    def little_memory(original, **inputs):
        if len(inputs["input_ids"]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(**inputs)

    system.target.forward = functools.partial(little_memory, system.target.forward)
    assert as_plain(ASTSampler(system, OPENINGS, 2, 3).grow(OPENINGS, range(5))) == whole
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        "out of memory, so conversations are grown 5 at a time from now on: "
        "CUDA out of memory. Tried to allocate 20.00 MiB"
    )


def test_a_single_conversation_that_does_not_fit_fails_with_the_fix():
    system = make_system("gpt2", "llama", SAMPLED, cache_bytes=10_000)
    with pytest.raises(InputError, match="not even one conversation .* budget is 10,000: raise cache_bytes, or lower"):
        ASTSampler(system, OPENINGS, 2, 2).grow(OPENINGS, range(5))


def test_rows_cut_at_the_window_are_fed_again_apart_from_rows_that_fit(monkeypatch):
    tokenizer = make_tokenizer(300)
    sampling = SamplingParams(max_new_tokens=8, temperature=1.3)
    backend = HFBackend(make_gpt2(tokenizer, positions=96), tokenizer, sampling)
    session = backend.open(["a pot of soup " * 30, "soup", "all day long " * 5], seeds=range(3), logprobs=True)
    wide = []
    backend.forward = functools.partial(counted_tokens, backend.forward, wide)
    for turn in range(4):
        session = session.branch([(row, sibling) for row in range(len(session.rows)) for sibling in range(2)][:6])
        texts = [f"what about the weather in {turn} {row}?" for row in range(len(session.rows))]
        before = [row.ids for row in session.rows]
        likelihoods = session.append(texts)
        for row, (text, old, likelihood) in enumerate(zip(texts, before, likelihoods, strict=True)):
            ids = session.rows[row].ids[-(96 - 8) :]
            added = len(encode(backend, text))
            table = logits_alone(backend, ids).log_softmax(-1)
            stop = len(ids) - 1
            wanted = [table[at - 1, ids[at]].item() for at in range(stop - added, stop)]
            assert likelihood == pytest.approx(wanted, abs=1e-4)
            assert session.rows[row].ids[: len(old)] == old
        keys = [derive_seed(key, 0) for key in session.keys]
        contexts = [row.ids[-(96 - 8) :] for row in session.rows]
        for sample, context, key in zip(session.sample(), contexts, keys, strict=True):
            assert sample.prompt_ids == context
            assert sample.ids == sampled_alone(backend, context, key)
        session.append([f"well, {row}" for row in range(len(session.rows))])
    # The long rows go by themselves: no pass feeds the short ones' few tokens padded to the window.
    assert (2, 88) in wide and (4, 10) in wide and (6, 88) in wide


def counted_tokens(original, wide, **inputs):
    wide.append(tuple(inputs["input_ids"].shape))
    return original(**inputs)


def make_mamba(tokenizer, seed=0, positions=512):
    torch.manual_seed(seed)
    config = Mamba2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=2,
        num_hidden_layers=2,
        chunk_size=8,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    return Mamba2ForCausalLM(config).eval()


def make_bloom(tokenizer, seed=0, positions=512):
    torch.manual_seed(seed)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2, eos_token_id=tokenizer.eos_token_id
    )
    model = BloomForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("make", [make_mamba, make_bloom])
def test_models_whose_cache_cannot_be_branched_grow_the_same_trees_by_feeding_again(monkeypatch, make):
    monkeypatch.setitem(MAKERS, "other", make)
    system = make_system("other", "gpt2", SAMPLED)
    assert not system.tester.branches and system.target.branches
    assert_as_grown_alone(system, OPENINGS[:3], 2, 2)
    assert_as_grown_alone(make_system("gpt2", "other", SAMPLED), OPENINGS[:3], 2, 2, max_rows=5)


def test_bfloat16_and_eager_attention_grow_trees_too():
    system = make_system("llama", "qwen2", SAMPLED)
    for backend in (system.tester, system.target):
        backend.model.set_attn_implementation("eager")
    assert_as_grown_alone(system, OPENINGS[:2], 2, 3)
    for backend in (system.tester, system.target):
        backend.model.to(torch.bfloat16)
    trees = ASTSampler(system, OPENINGS, 2, 3).grow(OPENINGS, range(5))
    nodes = [node for tree in trees for node in tree.nodes()]
    assert all(len(node.sampling_logprobs) == len(node.probe_ids) for node in nodes)
    # Growing alone in the same precision rounds otherwise: the log-probabilities agree as far as that goes.
    for node in nodes[:10]:
        table = logits_alone(system.tester, node.prompt_ids + node.probe_ids).div(SAMPLED.temperature).log_softmax(-1)
        at = range(len(node.prompt_ids) - 1, len(node.prompt_ids) + len(node.probe_ids) - 1)
        wanted = [table[i, token].item() for i, token in zip(at, node.probe_ids, strict=True)]
        assert node.sampling_logprobs == pytest.approx(wanted, abs=0.3)


def test_sampling_logprobs_are_the_testers_at_its_temperature():
    system = make_system("qwen2", "gpt2", SAMPLED)
    for tree in ASTSampler(system, OPENINGS, 2, 2).grow(OPENINGS, range(5)):
        for node in tree.nodes():
            logits = logits_alone(system.tester, node.prompt_ids + node.probe_ids) / SAMPLED.temperature
            start = len(node.prompt_ids) - 1
            table = logits[start : start + len(node.probe_ids)].log_softmax(-1)
            wanted = table.gather(-1, torch.tensor(node.probe_ids)[:, None])[:, 0].tolist()
            assert node.sampling_logprobs == pytest.approx(wanted, abs=1e-4)


def test_stop_strings_end_an_utterance_with_them():
    for make in ("gpt2", "bloom"):
        tokenizer = make_tokenizer(300)
        sampling = SamplingParams(max_new_tokens=40, temperature=1.5, stop_strings=("e", "oo"))
        backend = HFBackend({**MAKERS, "bloom": make_bloom}[make](tokenizer), tokenizer, sampling)
        session = backend.open(["We were there, we swear"] * 40, seeds=range(40), logprobs=True)
        samples = session.sample()
        stopped = [sample for sample in samples if len(sample.ids) < 40 and sample.ids[-1] not in backend.eos]
        assert len(stopped) > 20
        for sample in stopped:
            before = tokenizer.decode(sample.ids[:-1])
            assert not any(stop in before for stop in sampling.stop_strings)
            assert any(stop in sample.text for stop in sampling.stop_strings)
        # The last token was not fed, or was fed for nothing: either way the conversation continues from it.
        contexts = [row.ids for row in session.rows]
        for context, likelihood in zip(contexts, session.append(["soup"] * 40), strict=True):
            ids = context + encode(backend, "soup")
            table = logits_alone(backend, ids).log_softmax(-1)
            wanted = [table[at - 1, ids[at]].item() for at in range(len(context), len(ids))]
            assert likelihood == pytest.approx(wanted, abs=1e-4)


def test_the_model_is_left_as_it_was_found():
    tokenizer = make_tokenizer(300)
    backend = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLED)
    wanted = backend.open(OPENINGS, seeds=range(5)).sample()
    model = backend.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    model.train()
    session = backend.open(OPENINGS, seeds=range(5), logprobs=True)
    assert [sample.ids for sample in session.sample()] == [sample.ids for sample in wanted]
    session.append(OPENINGS)
    assert model.training and model.is_gradient_checkpointing and model.config.use_cache is False
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_virtual_tokens_of_prompt_tuning_are_fed_through_generate():
    tokenizer = make_tokenizer(300)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(make_gpt2(tokenizer), config)
    torch.nn.init.normal_(next(model.prompt_encoder.parameters()))
    backend = HFBackend(model, tokenizer, SamplingParams(max_new_tokens=6, temperature=0.0))
    assert not backend.branches
    without = HFBackend(model, tokenizer, backend.sampling, use_adapter=False)
    assert without.branches
    ids = [sample.ids for sample in backend.open(OPENINGS, seeds=range(5)).sample()]
    assert ids != [sample.ids for sample in without.open(OPENINGS, seeds=range(5)).sample()]
    context = tokenizer(OPENINGS[0] + "\n")["input_ids"]
    with torch.no_grad():
        for token in ids[0]:
            assert model(input_ids=torch.tensor([context])).logits[0, -1].argmax() == token
            context = [*context, token]
