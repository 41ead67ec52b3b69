"""The likelihood of probes under an endpoint, against the same tiny model held by this process."""

import math

import pytest
import torch
from conftest import make_gpt2, make_llama, make_tokenizer
from endpoints import completion, endpoint
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama

from astra_trl import ASTSampler, HFASTSystem, HFBackend, InputError, KeywordScorer
from astra_trl.backends.api.openai import OpenAIBackend
from astra_trl.backends.api.prompt_logprobs import align_tokens
from astra_trl.backends.base import Prefix, SamplingParams

CONTEXTS = ["Good morning, how are you today?", Prefix("1."), [{"role": "user", "content": "I love gardening"}]]
PROBES = ["What did you cook last night?", " a pot of soup", "naïve 😀 日本 😀😀 soup"]


def read(model, ids):
    """Log-probability of each id after those before it; `None` for the first."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [None, *logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]


def server(model, tokenizer, requests_seen=None, spoil=lambda data: data):
    """Answer as vLLM does: `echo` and `prompt_logprobs`, with one token after the prompt."""

    def answer(request):
        if "messages" in request:
            text = tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(request["prompt"])["input_ids"]
        values = read(model, ids)
        tokens = [tokenizer.decode([i]) for i in ids]
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        choice = {"index": 0, "text": " said", "message": {"content": " said"}, "finish_reason": "length"}
        data = {"choices": [choice], "usage": usage}
        if request.get("echo"):
            choice["logprobs"] = {"tokens": [*tokens, " said"], "token_logprobs": [*values, -0.25]}
        if "prompt_logprobs" in request:
            entries = [
                None if value is None else {str(i): {"logprob": value, "rank": 3, "decoded_token": token}}
                for i, token, value in zip(ids, tokens, values, strict=True)
            ]
            (data if "messages" in request else choice)["prompt_logprobs"] = entries
        return 200, spoil(data)

    return answer


def appended(backend, contexts, probes):
    session = backend.open(contexts, seeds=[0] * len(contexts), logprobs=True)
    return session, session.append(probes)


@pytest.mark.parametrize("way", ["echo", "vllm"])
@pytest.mark.parametrize("kind", ["gpt2", "llama with BOS"])
def test_a_text_that_is_continued(way, kind):
    tokenizer = make_tokenizer(bos=kind != "gpt2")
    model = (make_gpt2 if kind == "gpt2" else make_llama)(tokenizer)
    _, wanted = appended(HFBackend(model, tokenizer), CONTEXTS, PROBES)
    with endpoint(server(model, tokenizer)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, chat=False, prompt_logprobs=way, max_concurrency=1)
        assert backend.gives_logprobs
        session, found = appended(backend, CONTEXTS, PROBES)
        assert len(requests) == len(PROBES)
        for row, want in zip(found, wanted, strict=True):
            assert row == pytest.approx(want, abs=1e-4)
        assert [sample.text for sample in session.sample()] == [" said"] * 3
    assert all(request["max_tokens"] == 1 for request in requests[:3])
    assert requests[3]["prompt"].endswith("night?\n")  # what is continued has the line break that was not scored


def test_a_chat():
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    model = make_chat_llama(tokenizer)
    contexts = ["Good morning", [{"role": "system", "content": "Be kind."}], "assistant"]
    probes = ["What did you cook?", " a pot of soup 😀", "assistant"]  # a template strips, and has that word too
    local = HFBackend(model, tokenizer, chat=True)
    _, wanted = appended(local, contexts, [probe.strip() for probe in probes])
    with endpoint(server(model, tokenizer)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, prompt_logprobs="vllm")
        _, found = appended(backend, contexts, probes)
        for row, want in zip(found, wanted, strict=True):
            assert row == pytest.approx(want, abs=1e-4)
        assert len(requests) == 1 + 3  # one request asks for the text that a template adds after the last message
        appended(backend, contexts, probes)
        assert len(requests) == 1 + 3 + 3


def test_an_empty_probe_has_no_likelihood_and_costs_no_call():
    tokenizer = make_tokenizer()
    with endpoint(server(make_gpt2(tokenizer), tokenizer)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, chat=False, prompt_logprobs="echo")
        _, (row, other) = appended(backend, ["hi", "hi"], ["", "soup"])
        assert row == [] and other and len(requests) == 1


def test_the_reward_of_a_whole_tree_is_that_of_the_model_itself(gpt2_folder):
    local = HFBackend.from_pretrained(str(gpt2_folder), sampling=SamplingParams(max_new_tokens=6, temperature=0))
    with endpoint(server(local.model, local.tokenizer)) as (url, _):
        target = OpenAIBackend("m", base_url=url, chat=False, prompt_logprobs="echo")
        system = HFASTSystem(str(gpt2_folder), target, None, KeywordScorer(["a"]))
        assert system.likelihood_backend is target
        (tree,) = ASTSampler(system, ["soup"], 2, 2).grow(["soup"], [0])
    for node in tree.nodes():
        context = [{"role": "user", "content": turn.text} for turn in node.exchange.context]
        _, (wanted,) = appended(local, [context], [node.exchange.probe])
        if wanted:
            assert node.probe_logprob_per_token == pytest.approx(math.fsum(wanted) / len(wanted), abs=1e-4)
            assert node.terms["likelihood"] == node.probe_logprob_per_token


def test_an_endpoint_without_log_probabilities_is_an_error_at_once():
    with endpoint(lambda request: completion("fine", choices=[{"text": "fine", "message": {"content": "x"}}])) as (
        url,
        requests,
    ):
        for settings in ({"chat": False, "prompt_logprobs": "echo"}, {"prompt_logprobs": "vllm"}):
            with pytest.raises(InputError, match="gives no log-probabilities of prompts in the way"):
                appended(OpenAIBackend("m", base_url=url, **settings), ["hi"], ["ho"])
    assert len(requests) == 2


def test_a_call_for_them_that_fails_is_the_exchanges_error_and_costs_no_answer():
    tokenizer = make_tokenizer()
    whole = server(make_gpt2(tokenizer), tokenizer)
    with endpoint(lambda request: (500, {}) if "bad" in request["prompt"] else whole(request)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, chat=False, prompt_logprobs="echo", max_retries=0)
        session, (row, other) = appended(backend, ["hi", "hi"], ["good", "bad"])
        assert row and other == []
        good, bad = session.sample()
        assert good.error is None and bad.error.startswith("InternalServerError") and len(requests) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda logprobs: {**logprobs, "tokens": ["x"] * len(logprobs["tokens"])},
        lambda logprobs: {
            **logprobs,
            "tokens": logprobs["tokens"][:3],
            "token_logprobs": logprobs["token_logprobs"][:3],
        },
    ],
)
def test_tokens_that_are_not_the_texts_are_no_likelihood(spoil):
    def spoilt(data):
        data["choices"][0]["logprobs"] = spoil(data["choices"][0]["logprobs"])
        return data

    tokenizer = make_tokenizer()
    with endpoint(server(make_gpt2(tokenizer), tokenizer, spoil=spoilt)) as (url, _):
        backend = OpenAIBackend("m", base_url=url, chat=False, prompt_logprobs="echo")
        _, (row,) = appended(backend, ["Good morning"], ["lovely plan"])
    assert row == []


@given(
    st.text(st.sampled_from("ab \n😀日é"), max_size=12),
    st.text(st.sampled_from("ab 😀日é\n"), min_size=1, max_size=12),
)
def test_tokens_that_split_characters_are_aligned(context, probe):
    tokenizer = make_tokenizer(vocab_size=270)  # hardly more than bytes
    text = f"{context}\n{probe}"
    tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]
    spans = align_tokens(tokens, text)
    assert spans is not None and [index for index, _, _ in spans] == list(range(len(tokens)))
    assert spans[-1][2] == len(text)
    for index, start, stop in spans:
        assert "\ufffd" in tokens[index] or text[start:stop] == tokens[index]


@given(
    st.lists(st.text(st.sampled_from("ab\ufffd"), max_size=2), max_size=8), st.text(st.sampled_from("abc"), max_size=8)
)
def test_tokens_of_another_text_are_noticed(tokens, text):
    spans = align_tokens(tokens, text)
    if spans is not None:
        assert all(text[a:b] == tokens[i] for i, a, b in spans if "\ufffd" not in tokens[i] and tokens[i])


def test_settings_that_cannot_work_are_refused():
    for settings, message in (
        ({"prompt_logprobs": "echo"}, "are for plain completions"),
        ({"prompt_logprobs": "yes"}, "choose one of none, echo, vllm"),
    ):
        with pytest.raises(InputError, match=message):
            OpenAIBackend("m", base_url="http://localhost:1/v1", **settings)
