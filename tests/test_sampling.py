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
    """How likely counts this far from the expected ones are, by Pearson's chi-squared test."""
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
    sampler = TokenSampler(params, eos, range(rows), [context] * rows, torch.device("cpu"))
    tokens, logprobs = sampler(logits.repeat(rows, 1), torch.arange(rows), 0)
    expected = rows * processed(params, context, [], logits, eos)[0]
    assert fit_probability(tokens.bincount(minlength=vocabulary), expected) > 1e-3
    uncut = (logits / params.temperature).log_softmax(-1)[0]
    assert torch.allclose(logprobs, uncut[tokens], atol=1e-5)


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


def test_a_row_draws_the_same_beside_any_others():
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
