"""The sampling loop against the distribution of transformers' own processors."""

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from astra_trl import HFBackend, SamplingParams
from astra_trl.backends.hf.sampling import TokenSampler

SETTINGS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.7},
    "narrow top_p": {"top_p": 0.1},
    "top_k and top_p": {"top_k": 12, "top_p": 0.8, "temperature": 1.5},
    "penalty": {"repetition_penalty": 1.6, "temperature": 0.9},
    "reward for repeating": {"repetition_penalty": 0.7, "top_p": 0.9},
    "min_new_tokens": {"min_new_tokens": 2, "top_p": 0.95},
    "all": {"temperature": 0.7, "top_p": 0.7, "repetition_penalty": 1.1, "min_new_tokens": 2},
}


def processed(params, context, ids, logits, eos):
    """The distribution (rows, vocabulary) that `generate` would draw from after `ids`, by transformers' processors."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(len(context), params.min_new_tokens, eos, "cpu"))
    processors.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    return processors(torch.tensor([context + ids]), logits.clone()).softmax(-1)


def fit_probability(counts, expected):
    """Return the p-value of counts against expected ones, by Pearson's chi-squared test."""
    assert counts[expected == 0].sum() == 0, "a token was drawn that cannot be"
    order = expected.argsort()
    counts, expected = counts[order], expected[order]
    # Cells of fewer than 5 expected draws are pooled, as the test asks for.
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    counts, expected = counts[expected > 0].double(), expected[expected > 0].double()
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.double), statistic / 2).item()


@pytest.mark.parametrize("name", list(SETTINGS))
def test_draws_have_the_distribution_of_transformers_processors(name):
    params = SamplingParams(max_new_tokens=3, **SETTINGS[name])
    rows, vocabulary = 40_000, 60
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, vocabulary, generator=generator)
    context, eos = [5, 9, 9, 31], [7, 40]
    sampler = TokenSampler(params, eos, range(rows), [context] * rows, torch.device("cpu"), untempered=True)
    tokens, logprobs = sampler(logits.repeat(rows, 1), torch.arange(rows), 0)
    expected = rows * processed(params, context, [], logits, eos)[0]
    assert fit_probability(tokens.bincount(minlength=vocabulary), expected) > 1e-3
    for column, temperature in enumerate((params.temperature, 1.0)):
        uncut = (logits / temperature).log_softmax(-1)[0]
        assert torch.allclose(logprobs[:, column], uncut[tokens], atol=1e-5)


# Each processor by itself, and together; "random" logits have no ties, "tied" ones have a few values only.
PROCESSORS = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.1},
    "reward for repeating": {"repetition_penalty": 0.8},
    "top_k": {"top_k": 9},
    "top_p": {"top_p": 0.7},
    "min_new_tokens": {"min_new_tokens": 2},
    "penalty and top_k": {"repetition_penalty": 1.3, "top_k": 9},
    "penalty and top_p": {"repetition_penalty": 1.1, "top_p": 0.7},
    "all": {"repetition_penalty": 1.1, "top_k": 20, "top_p": 0.9, "min_new_tokens": 2},
}


def spread_evenly(rows, draws):
    """Numbers (rows, draws) that fill the unit cube evenly, by an additive recurrence: hardly any sampling error."""
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (draws + 1))
    steps = torch.tensor([root ** -(draw + 1) for draw in range(draws)], dtype=torch.double)
    numbers = (0.5 + torch.arange(1, rows + 1)[:, None] * steps) % 1
    return numbers.float().clamp(max=1 - 2**-23)


@pytest.mark.parametrize(("kind", "dtype"), [("random", torch.float32), ("tied", torch.bfloat16)])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", list(PROCESSORS))
def test_at_every_temperature_the_distribution_is_that_of_transformers(name, temperature, kind, dtype):
    params = SamplingParams(max_new_tokens=3, temperature=temperature, **PROCESSORS[name])
    rows, vocabulary = 4000, 64
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, vocabulary, generator=generator)
    logits = (2 * logits).round() / 2 if kind == "tied" else logits
    logits = logits.to(dtype)
    # What the penalty is about and what is held back are the likeliest tokens, or it would not show.
    likeliest = logits[0].float().argsort(descending=True).tolist()
    context, eos = [likeliest[0], 9, likeliest[2]], [likeliest[1], 40]
    sampler = TokenSampler(params, eos, range(rows), [context] * rows, torch.device("cpu"), untempered=True)
    sampler.uniforms = spread_evenly(rows, sampler.uniforms.shape[-1])[:, None]
    tokens, logprobs = sampler(logits.repeat(rows, 1), torch.arange(rows), 0)
    expected = processed(params, context, [], logits.float(), eos)[0]
    shares = tokens.bincount(minlength=vocabulary) / rows
    if kind == "tied":
        # Which of equally likely tokens the nucleus ends with is left to an unstable sort: only how many are in it.
        shares, expected = shares.sort().values, expected.sort().values
    assert shares[expected == 0].sum() == 0
    assert (shares - expected).abs().max() < 5e-3
    for column, divisor in enumerate((temperature, 1.0)):
        uncut = (logits.double() / divisor).log_softmax(-1)[0]
        torch.testing.assert_close(logprobs[:, column].double(), uncut[tokens], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.3}, {"repetition_penalty": 1.3, "min_new_tokens": 4}])
@pytest.mark.parametrize("branches", [True, False])
def test_greedy_utterances_are_those_of_generate(settings, branches):
    """Of the engine, and of what feeds a model that it cannot hold."""
    tokenizer = make_tokenizer(270)
    model = make_gpt2(tokenizer)
    params = SamplingParams(max_new_tokens=12, temperature=0.0, **settings)
    backend = HFBackend(model, tokenizer, params)
    session = backend.open(["Good morning", "soup"], seeds=[0, 1])
    session.branches = branches
    for sample in session.sample():
        whole = model.generate(
            torch.tensor([sample.prompt_ids]), do_sample=False, max_new_tokens=12, pad_token_id=0, **settings
        )
        assert sample.ids == whole[0, len(sample.prompt_ids) :].tolist()


@pytest.mark.parametrize("name", ["plain", "top_k and top_p", "all"])
def test_first_and_second_tokens_of_a_model_have_that_distribution(name):
    params = SamplingParams(max_new_tokens=2, **SETTINGS[name])
    tokenizer = make_tokenizer(270)
    backend = HFBackend(make_gpt2(tokenizer), tokenizer, params)
    rows = 20_000
    samples = backend.open(["soup"] * rows, seeds=range(rows)).sample()
    context, eos, vocabulary = samples[0].prompt_ids, sorted(backend.eos), len(tokenizer)
    first = torch.tensor([sample.ids[0] for sample in samples])
    with torch.no_grad():
        start = backend.model(torch.tensor([context])).logits[0, -1:].float()
        everything = torch.tensor([[*context, token] for token in range(vocabulary)])
        after = backend.model(everything).logits[:, -1].float()
    expected = processed(params, context, [], start, eos)[0]
    assert fit_probability(first.bincount(minlength=vocabulary), rows * expected) > 1e-3
    going_on = expected.clone()
    going_on[eos] = 0
    chances = torch.cat(
        [processed(params, context, [token], after[token : token + 1], eos) for token in range(vocabulary)]
    )
    second = torch.tensor([sample.ids[1] for sample in samples if len(sample.ids) == 2])
    wanted = len(second) * (going_on / going_on.sum()) @ chances
    assert fit_probability(second.bincount(minlength=vocabulary), wanted) > 1e-3


def test_a_row_draws_the_same_tokens_in_any_batch():
    params = SamplingParams(max_new_tokens=4, top_p=0.6)
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    together = TokenSampler(params, [0], range(50), [[1]] * 50, torch.device("cpu"))
    tokens, _ = together(logits.clone(), torch.arange(50), 2)
    for row in (0, 17, 49):
        alone = TokenSampler(params, [0], [row], [[1]], torch.device("cpu"))
        assert alone(logits[row : row + 1].clone(), torch.tensor([0]), 2)[0].item() == tokens[row]


def test_the_chi_squared_test_sees_a_wrong_distribution():
    expected = torch.full((20,), 1000.0)
    counts = expected.clone().long()
    counts[0] += 200
    counts[1] -= 200
    assert fit_probability(counts, expected) < 1e-3
