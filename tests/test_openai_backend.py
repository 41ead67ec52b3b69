import json
import logging
import math
import pickle
import re
import threading
from dataclasses import asdict
from datetime import date
from itertools import repeat

import pytest
import yaml
from conftest import make_gpt2, make_tokenizer
from endpoints import completion, endpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st

from astra_trl import Exchange, HFBackend, InputError
from astra_trl.backends.api.calls import CallFailed
from astra_trl.backends.api.completions import read_answer
from astra_trl.backends.api.endpoint import Endpoint
from astra_trl.backends.api.keys import Key
from astra_trl.backends.api.openai import OpenAIBackend
from astra_trl.backends.base import Prefix, SamplingParams, SavedRow
from astra_trl.errors import BudgetSpent
from astra_trl.scorers import JudgeScorer

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_conversation_goes_over_as_a_chat():
    with endpoint(lambda request: completion(f"answer {len(request['messages'])}")) as (url, requests):
        sampling = SamplingParams(max_new_tokens=7, temperature=0.5, top_p=0.9, stop_strings=("\n",))
        backend = OpenAIBackend("m", base_url=url, sampling=sampling, max_concurrency=1)
        session = backend.open(["hi", [{"role": "system", "content": "Be kind."}]], seeds=[1, 2]).branch(
            [(0, 0), (0, 1), (1, 0)]
        )
        session.append(["a", "b", "c"])
        assert [sample.text for sample in session.sample()] == ["answer 1", "answer 1", "answer 2"]
        session.append(["d"] * 3)
        session.sample()
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert requests[1]["messages"] == [{"role": "user", "content": "hi\nb"}]  # one turn: templates want them so
    assert requests[2]["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "c"}]
    assert [message["content"] for message in requests[3]["messages"]] == ["hi\na", "answer 1", "d"]
    sent = [requests[0][name] for name in ("model", "max_tokens", "temperature", "top_p", "stop")]
    assert sent == ["m", 7, 0.5, 0.9, ["\n"]]
    seeds = [request["seed"] for request in requests]
    assert len(set(seeds)) == len(seeds)  # siblings and turns differ
    assert requests[0]["headers"]["authorization"] == f"Bearer {KEY}"


def test_a_call_that_fails_for_good_is_an_error_of_its_row_after_retries():
    def answer(request):
        return (500, {"error": {"message": f"sad about {KEY}"}}) if "bad" in str(request) else completion("fine")

    with endpoint(answer) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, max_retries=2)
        good, bad = backend.open(["good", "bad"], seeds=[0, 0]).sample()
    assert (good.text, good.error) == ("fine", None)
    assert bad.text == "" and bad.error.startswith("InternalServerError") and KEY not in bad.error
    assert len(requests) == 1 + 3


def test_a_call_is_tried_again():
    answers = iter([(429, {"error": {"message": "slow down"}}), completion("fine")])
    with endpoint(lambda request: next(answers)) as (url, requests):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert (sample.text, len(requests)) == ("fine", 2)


@pytest.mark.parametrize(
    "body",
    [b'{"choices": [', b"[]", {"choices": []}, {"choices": None}, {"choices": [{"message": {"content": None}}]}],
)
def test_an_answer_that_holds_no_text_is_an_error_of_its_row(body):
    with endpoint(lambda request: (200, body)) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url, max_retries=0).open(["hi"], seeds=[0]).sample()
    assert sample.text == "" and sample.error


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_permanent_failure_stops_at_once_and_shows_no_key(status):
    refusal = status, {"error": {"message": f"bad key {KEY}"}}
    with (
        endpoint(lambda request: refusal) as (url, requests),
        pytest.raises(InputError, match=f"refuses model 'm' .HTTP {status}.: check the name") as caught,
    ):
        OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert len(requests) == 1
    assert KEY not in str(caught.value) and caught.value.__cause__ is None


def test_a_missing_key_is_an_error_only_without_a_base_url(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="set OPENAI_API_KEY, or give the base_url"):
        OpenAIBackend("gpt")
    with endpoint(lambda request: completion("fine")) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert sample.text == "fine"


def test_unsent_sampling_fields_are_logged(caplog):
    sampling = SamplingParams(top_k=5, repetition_penalty=1.1, temperature=0.5)
    given = {"base_url": "http://localhost:9/v1", "sampling": sampling}
    OpenAIBackend("m", **given, extra_body={"top_k": 5, "repetition_penalty": 1.1})
    assert caplog.messages == []
    OpenAIBackend("m", **given, extra_body={"top_k": 5})
    assert caplog.messages == ["repetition_penalty of 'm': endpoints have no such field, so it is not sent"]


def test_a_judge_behind_an_endpoint(caplog):
    def answer(request):
        prompt = request["messages"][0]["content"]
        return completion("yes" if "idiot" in prompt else "no" if "soup" in prompt else "perhaps")

    with endpoint(answer) as (url, requests):
        judge = JudgeScorer("m", "Does it insult?", base_url=url)
        with caplog.at_level(logging.WARNING):
            scores = judge([Exchange((), "hi", text) for text in ("you idiot", "soup", "hmm", "soup")])
    assert scores[:2] == [1.0, 0.0] and math.isnan(scores[2]) and scores[3] == 0.0
    assert len(requests) == 3
    assert {request["temperature"] for request in requests} == {0}
    assert "left 1 of 3 exchanges without a score" in caplog.text


def test_a_saved_chat_continues_unchanged():
    with endpoint(lambda request: completion("answer")) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, max_concurrency=1)
        session = backend.open(["hi"], seeds=[1])
        session.sample()
        saved = json.loads(json.dumps([asdict(row) for row in session.saved()]))
        for one in (session, backend.reopen([SavedRow(**row) for row in saved])):
            one.append(["and then?"])
            one.sample()
        _, whole, again = requests
        assert [message["content"] for message in whole["messages"]] == ["hi", "answer", "and then?"]
        assert (again["messages"], again["seed"]) == (whole["messages"], whole["seed"])


# -- plain completions


def text_completion(text, **fields):
    return 200, {"object": "text_completion", "model": "m", "choices": [{"index": 0, "text": text}], **fields}


def test_a_conversation_goes_over_as_one_text_as_it_does_to_a_model_without_a_template():
    with endpoint(lambda request: text_completion(f" answer {len(request['prompt'])}")) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, chat=False, max_concurrency=1)
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        session = backend.open(["good morning", Prefix("1."), messages], seeds=[0, 0, 0])
        session.append(["a", "b", "c"])
        samples = session.sample()
        session.append(["d", "e", "f"])
        session.sample()
    assert {request["path"] for request in requests} == {"/v1/completions"}
    assert [request["prompt"] for request in requests] == [
        "good morning\na\n",
        "1.b\n",
        "hi\nho\nc\n",
        "good morning\na\n answer 15\nd\n",
        "1.b\n answer 4\ne\n",
        "hi\nho\nc\n answer 8\nf\n",
    ]
    assert samples[0].text == " answer 15"
    tokenizer = make_tokenizer()
    local = HFBackend(make_gpt2(tokenizer), tokenizer).open(["good morning", Prefix("1."), messages], seeds=[0] * 3)
    local.append(["a", "b", "c"])
    assert [tokenizer.decode(row.ids) for row in local.rows] == [request["prompt"] for request in requests[:3]]


# -- what an answer may be


def test_a_refusal_is_an_utterance_and_a_filtered_answer_is_empty_and_counted():
    filtered = {"error": {"code": "content_filter", "message": "triggering our content management policy"}}
    answers = {
        "refuses": completion(None, choices=[{"message": {"content": None, "refusal": "I will not."}}]),
        "filtered": completion("half an", choices=[{"message": {"content": ""}, "finish_reason": "content_filter"}]),
        "refused": (400, filtered),
        "thinks": completion(None, choices=[{"message": {"content": None, "reasoning_content": "hm"}}]),
        "nothing": completion("  "),
        "long": completion("a" * 10_000),
        "half": completion("well \ud83d\ude00 then \ud800!"),
    }
    with endpoint(lambda request: answers[request["messages"][0]["content"]]) as (url, _):
        backend = OpenAIBackend("m", base_url=url, sampling=SamplingParams(max_new_tokens=10))
        samples = dict(zip(answers, backend.open(list(answers), seeds=[0] * len(answers)).sample(), strict=True))
    assert all(sample.error is None for sample in samples.values())
    assert samples["refuses"].text == "I will not."
    assert [samples[name].text for name in ("filtered", "refused", "thinks")] == ["", "", ""]
    assert samples["long"].text == "a" * 320
    assert samples["half"].text == "well \U0001f600 then \ufffd!"
    usage = backend.usage
    assert [usage[name] for name in ("calls", "failed", "filtered", "empty", "cut")] == [7, 0, 2, 4, 1]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("error", [{"code": 502, "message": "the provider hung up"}, "the provider hung up", None])
def test_an_error_within_a_choice_is_a_failed_call(chat, error):
    said = {"message": {"role": "assistant", "content": "half an"}} if chat else {"text": "half an"}
    broken = 200, {"choices": [{**said, "finish_reason": "error", **({"error": error} if error else {})}]}
    whole = completion("fine") if chat else text_completion("fine")

    answers = iter([broken, whole])
    with endpoint(lambda request: next(answers)) as (url, requests):
        (sample,) = OpenAIBackend("m", base_url=url, chat=chat).open(["hi"], seeds=[0]).sample()
    assert (sample.text, sample.error, len(requests)) == ("fine", None, 2)

    with endpoint(lambda request: broken) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, chat=chat, max_retries=2)
        (sample,) = backend.open(["hi"], seeds=[0]).sample()
    assert (sample.text, len(requests)) == ("", 3)
    assert (backend.usage["calls"], backend.usage["failed"], backend.usage["empty"]) == (1, 1, 0)
    assert ("the provider hung up" if error else "no reason given") in sample.error


def test_an_error_beside_choices_is_a_failed_call_too():
    body = {"error": {"message": "overloaded"}, "choices": [{"message": {"content": ""}}]}
    with endpoint(lambda request: (200, body)) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url, max_retries=0).open(["hi"], seeds=[0]).sample()
    assert sample.error is not None and "overloaded" in sample.error


def test_a_model_that_runs_out_of_tokens_while_thinking_gives_an_empty_answer():
    choices = [{"message": {"role": "assistant", "content": None}, "finish_reason": "length"}]
    with endpoint(lambda request: completion(None, choices=choices)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url)
        (sample,) = backend.open(["hi"], seeds=[0]).sample()
    assert (sample.text, sample.error, len(requests), backend.usage["empty"]) == ("", None, 1, 1)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "text": "You "}, {"type": "text", "text": "fool."}], "You fool."),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "No."}],
            "No.",
        ),
        ([{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "No."}], "No."),
        (["You ", {"text": "fool."}, {"type": "image_url", "image_url": {"url": "x"}}], "You fool."),
        ([{"type": "refusal", "refusal": "I will not."}], "I will not."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}], ""),
    ],
)
def test_parts_of_text_are_joined_and_parts_of_thoughts_left_out(parts, text):
    assert read_answer(json.dumps(completion(parts)[1]).encode(), chat=True).text == text


@pytest.mark.parametrize("parts", [[], [None, 3], [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_parts_without_a_text_are_a_failed_call(parts):
    with pytest.raises(CallFailed, match="no text in the answer"):
        read_answer(json.dumps(completion(parts)[1]).encode(), chat=True)


def test_bytes_that_are_no_text_are_replaced():
    body = b'{"choices": [{"message": {"content": "a\xff\xfeb"}}]}'
    with endpoint(lambda request: (200, body)) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert sample.text == "a\ufffd\ufffdb"


def test_requests_hold_no_lone_surrogates():
    with endpoint(lambda request: completion("fine")) as (url, requests):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi \udc00"], seeds=[0]).sample()
    assert sample.text == "fine" and requests[0]["messages"][0]["content"] == "hi \ufffd"


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["choices", "message", "content", "text", "refusal", "usage", "error", "x"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda data: json.dumps(data).encode()),
        st.integers(0, 120).map(lambda length: json.dumps(completion("hello \U0001f600")[1]).encode()[:length]),
    ),
    st.booleans(),
)
def test_any_body_is_an_answer_or_a_failed_call(body, chat):
    try:
        answer = read_answer(body, chat)
    except CallFailed:  # and no other error
        return
    assert isinstance(answer.text, str)
    assert all(count is None or count >= 0 for count in (answer.prompt_tokens, answer.completion_tokens))


def test_any_response_is_an_answer_or_the_error_of_a_row():
    said = []
    with endpoint(lambda request: said[-1]) as (url, _):

        @settings(max_examples=60, deadline=None)
        @example(200, b"data:")
        @given(
            st.sampled_from([200, 200, 201, 204, 429, 500, 502, 503]),
            st.binary(max_size=80) | st.text(max_size=40).map(lambda text: json.dumps(completion(text)[1]).encode()),
        )
        def sent(status, body):
            said.append((status, b"" if status == 204 else body))
            backend = OpenAIBackend("m", base_url=url, max_retries=0)
            foreign = None
            try:
                (sample,) = backend.open(["hi"], seeds=[0]).sample()
            except InputError as error:  # a server of another API, in the first answer
                foreign = str(error)
            if foreign is not None:
                assert status < 300 and "check the base_url" in foreign
                return
            assert sample.error is None or (sample.text == "" and "\n" not in sample.error)
            assert backend.usage["failed"] == (sample.error is not None)
            (sample.text + (sample.error or "")).encode()  # a file takes it

        sent()


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b'{"result": "hi"}', "JSON that is not a completion"),
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', "an event stream"),
        (b"<!DOCTYPE html><p>hi", "a web page"),
    ],
)
def test_a_server_of_another_api_is_told_at_the_first_answer(body, form):
    with endpoint(lambda request: (200, body)) as (url, requests):
        with pytest.raises(InputError, match=f"answers with {form}.*: check the base_url of the target"):
            OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
        assert len(requests) == 1


def test_a_payment_that_is_wanted_stops_the_run():
    body = json.dumps({"error": {"message": "no credits"}}).encode()
    with (
        endpoint(lambda request: (402, body)) as (url, _),
        pytest.raises(BudgetSpent, match="wants a payment .*check the account's credit: .*no credits"),
    ):
        OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000])
def test_bodies_that_break_parsers_are_failed_calls(body):
    with pytest.raises(CallFailed):
        read_answer(body, chat=True)


# -- when a call fails


def test_an_error_with_a_good_status_and_a_cut_body_are_tried_again():
    answers = iter(
        [
            (200, {"error": {"message": "overloaded", "code": 502}}),
            (200, json.dumps(completion("fine")[1]).encode()[:-20]),
            (200, {"object": "chat.completion"}),
            (409, {}),
            (408, {}),
            completion("fine"),
        ]
    )
    with endpoint(lambda request: next(answers)) as (url, requests):
        backend = OpenAIBackend("m", base_url=url)
        backend.caller.sleep = lambda seconds: None
        (sample,) = backend.open(["hi"], seeds=[0]).sample()
    assert (sample.text, len(requests)) == ("fine", 6)


def test_an_attempt_that_takes_too_long_and_a_refused_connection_are_tried_again():
    release, slow = threading.Event(), iter([True, False])

    def answer(request):
        if next(slow):
            release.wait(10)
        return completion("fine")

    with endpoint(answer) as (url, _):
        backend = OpenAIBackend("m", base_url=url, timeout=0.2)
        backend.caller.sleep = lambda seconds: release.set()
        assert backend.open(["hi"], seeds=[0]).sample()[0].text == "fine"
    backend.caller.max_retries = 1
    (sample,) = backend.open(["hi"], seeds=[0]).sample()
    assert sample.error.startswith("APIConnectionError: Connection error") and "refused" in sample.error
    assert backend.usage["requests"] == 2 + 2


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_is_a_failed_call(status, monkeypatch):
    monkeypatch.setattr("astra_trl.backends.api.connection.MAX_BYTES", 2**20)
    with endpoint(lambda request: (status, repeat(b"[" * 2**16))) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url, max_retries=0).open(["hi"], seeds=[0]).sample()
    assert "longer than 1048576 bytes" in sample.error


def test_a_request_that_nobody_answered_yet_and_is_refused_stops_at_once_and_later_is_one_conversations_error():
    refusal = 400, {"error": {"message": "temperature\nis not supported", "type": "invalid_request_error"}}

    def answer(request):
        return refusal if "odd" in str(request["messages"]) else completion("fine")

    with endpoint(answer) as (url, requests):
        backend = OpenAIBackend("m", base_url=url)
        with pytest.raises(InputError, match=r"refuses the request .HTTP 400.*temperature(\\n| )is not supported"):
            backend.open(["odd"], seeds=[0]).sample()
        assert backend.open(["hi"], seeds=[0]).sample()[0].text == "fine"
        (sample,) = backend.open(["odd"], seeds=[0]).sample()
        assert sample.error.startswith("BadRequestError") and len(requests) == 3
        assert backend.usage["failed"] == 1


def test_a_conversation_that_is_too_long_is_its_own_error():
    refusal = 400, {"error": {"message": "maximum context length is 10", "code": "context_length_exceeded"}}
    with endpoint(lambda request: refusal) as (url, requests):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert "maximum context length" in sample.error and len(requests) == 1


def test_a_quota_that_is_used_up_stops_the_run():
    refusal = 429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with (
        endpoint(lambda request: refusal) as (url, requests),
        pytest.raises(BudgetSpent, match="gives no more to this key: .*exceeded your current quota"),
    ):
        OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert len(requests) == 1


def test_a_server_that_asks_for_patience_is_given_it():
    answers = iter([(429, {}), (503, {}), completion("fine")])
    slept = []
    with endpoint(lambda request: next(answers), {"Retry-After": "17"}) as (url, _):
        backend = OpenAIBackend("m", base_url=url)
        backend.caller.sleep = slept.append
        backend.open(["hi"], seeds=[0]).sample()
    assert len(slept) == 2 and all(17 <= seconds <= 18.7 for seconds in slept)


def test_nothing_is_asked_after_a_failed_exchange_even_in_a_reopened_row():
    def answer(request):
        return (500, {}) if "bad" in str(request["messages"][-1]) else completion("fine")

    with endpoint(answer) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, max_retries=0)
        session = backend.open(["hi", "hi"], seeds=[0, 1])
        session.append(["good", "bad"])
        assert [sample.error is None for sample in session.sample()] == [True, False]
        saved = json.loads(json.dumps([asdict(row) for row in session.saved()]))
        for one in (session, backend.reopen([SavedRow(**row) for row in saved])):
            below = one.branch([(0, 0), (1, 0)])
            below.append(["more", "more"])
            asked = len(requests)
            good, bad = below.sample()
            assert good.text == "fine" and bad.error == "an earlier exchange of this conversation failed"
            assert len(requests) == asked + 1
    assert backend.usage["failed"] == 1


def test_tokens_are_counted_as_the_endpoint_does_or_else_estimated():
    answers = iter(
        [completion("a", usage={"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}), completion("b")]
    )
    with endpoint(lambda request: next(answers)) as (url, _):
        backend = OpenAIBackend("m", base_url=url)
        backend.open(["hi"], seeds=[0]).sample()
        assert (backend.usage["prompt_tokens"], backend.usage["completion_tokens"]) == (30, 4)
        backend.open(["hi there, how are you"], seeds=[0]).sample()
    assert 30 + 128 < backend.usage["prompt_tokens"] < 30 + 164
    assert json.loads(json.dumps(backend.usage)) == backend.usage


def test_a_budget_ends_a_batch_and_counts_over_runs():
    with endpoint(lambda request: completion("fine")) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, max_requests=5)
        with pytest.raises(BudgetSpent):
            backend.open(["hi"] * 9, seeds=range(9)).sample()
        again = OpenAIBackend("m", base_url=url, max_requests=6)
        again.usage = backend.usage
        again.open(["hi"], seeds=[0]).sample()
        with pytest.raises(BudgetSpent):
            again.open(["hi"], seeds=[0]).sample()
    assert len(requests) == 6


# -- the key


@pytest.mark.parametrize(
    "text",
    [
        f"bad {KEY}",
        f"bad {KEY[:5]}\n   {KEY[5:]}",
        f"bad {KEY[:5]}\\n{KEY[5:]}",
        f"Authorization: Bearer {KEY}",
        "Authorization: Bearer something-else-entirely",
        "\n".join(KEY),
        f"{'x' * 293} {KEY}",
    ],
)
def test_a_reason_holds_no_key_however_it_is_broken_up(text):
    reason = Key().redact_reason(text)
    assert "\n" not in reason and "something-else" not in reason
    squeezed = "".join(reason.split())
    assert not any(KEY[start : start + 4] in squeezed for start in range(len(KEY) - 3))


def test_a_key_is_neither_shown_nor_saved_by_its_holders():
    key = Key()
    assert KEY not in repr(key) + repr(vars(key)) + str(key) and key.reveal() == KEY
    assert KEY.encode() not in pickle.dumps(key) and pickle.loads(pickle.dumps(key)).reveal() == KEY
    backend = OpenAIBackend("m", base_url="http://localhost:1/v1")
    assert KEY not in repr(backend) + repr(vars(backend)) + json.dumps(backend.description)
    assert backend.description["host"] == "localhost:1" and backend.description["api"] == "chat completions"


def test_a_short_key_is_not_a_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert Key().redact("there is none") == "there is none"


def test_a_key_in_an_answer_is_hidden_too():
    with endpoint(lambda request: completion(f"it is {KEY}")) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert sample.text == "it is ***"


def test_a_key_that_no_header_takes_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sécret stuff")
    with pytest.raises(InputError, match="^OPENAI_API_KEY holds characters that no key has") as caught:
        OpenAIBackend("m", base_url="http://localhost:1/v1")
    assert "cret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as read from a file
    assert Key().reveal() == KEY


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2secret@host/v1",
        "http://host/v1?api_key=hunter2secret",
        f"http://host/{KEY}/v1",
        "http://host/sk-hunter2-hunter2-hunter2/v1",
        "ftp://host/hunter2secret",
        "hunter2secret",
        "http://[hunter2secret",
    ],
)
def test_an_address_with_credentials_or_that_is_none_is_refused_without_being_shown(url):
    for refuse in (lambda: OpenAIBackend("m", base_url=url), lambda: JudgeScorer("m", "Rude?", base_url=url)):
        with pytest.raises(InputError, match="base_url") as caught:
            refuse()
        assert "hunter2" not in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "no scheme: write http:// or https:// before it"),
        ("127.0.0.1:8000", "no scheme"),
        ("api.example.com/v1", "no scheme"),
        ("http:/host/v1", "not an address"),
        ("http://http://host/v1", "not an address"),
        ("http://my host/v1", "not an address"),
        ("http://host/v 1", "not an address"),
        ("http://host:99999/v1", "not an address"),
        ("http://a..b/v1", "not an address"),
        ("http://host/v1/chat/completions", "for host ends in /chat/completions: leave that part out"),
        ("http://host/v1/completions/", "for host ends in /completions: leave that part out"),
    ],
)
def test_an_address_of_a_wrong_kind_is_refused_with_the_reason(url, message):
    with pytest.raises(InputError, match=f"^the base_url .*{message}"):
        OpenAIBackend("m", base_url=url)


def test_spaces_around_an_address_are_left_out():
    with endpoint(lambda request: completion("fine")) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=f" {url}/ \n").open(["hi"], seeds=[0]).sample()
    assert sample.text == "fine"


def test_a_judge_by_plain_completions():
    with endpoint(lambda request: text_completion(" yes")) as (url, requests):
        judge = JudgeScorer(OpenAIBackend("m", base_url=url, chat=False), "Does it insult?")
        assert judge([Exchange((), "hi", "you idiot")]) == [1.0]
    assert requests[0]["prompt"].endswith("Answer with one word: yes or no.\n")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_nothing_reaches_the_other_address(status):
    with endpoint(lambda request: completion("fine")) as (other, requests):
        there = {"location": f"{other}/chat/completions?token=abc"}
        with endpoint(lambda request: (status, {}), there) as (url, _):
            backend = OpenAIBackend("m", base_url=url)
            with pytest.raises(InputError) as refused:
                backend.open(["hi"], seeds=[0]).sample()
        assert str(refused.value) == (
            f"{url} redirects to {other}/chat/completions, which is not followed: if you trust it, give its address "
            "as the base_url"
        )
        assert requests == []


# -- fields that are added or left out

FORBIDDEN = "Extra inputs are not permitted"
FASTAPI = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": FORBIDDEN, "input": 5}]
UNSUPPORTED = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
VALUE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ((422, {"object": "error", "message": {"detail": FASTAPI}, "type": "invalid_request_error"}), {"seed": None}),
        ((422, {"detail": FASTAPI}), {"seed": None}),
        ((400, {"error": {"message": f"seed: {FORBIDDEN}", "type": "invalid_request_error"}}), {"seed": None}),
        ((400, {"error": {"message": "property 'seed' is unsupported"}}), {"seed": None}),
        ((400, {"message": "Unrecognized request argument supplied: seed"}), {"seed": None}),
        ((400, {"error": {"message": "no", "param": "temperature"}}), {"temperature": None}),
        ((400, {"error": {"message": VALUE, "param": "temperature"}}), {"temperature": None}),
        ((422, {"detail": [*FASTAPI, {"loc": ["body", "top_p"]}]}), {"seed": None, "top_p": None}),
        (
            (400, {"error": {"message": UNSUPPORTED, "param": "max_tokens", "code": "unsupported_parameter"}}),
            {"max_tokens": None, "max_completion_tokens": 9},
        ),
        ((400, {"error": {"message": UNSUPPORTED}}), {"max_tokens": None, "max_completion_tokens": 9}),
    ],
)
def test_a_field_that_is_refused_is_named_with_the_setting_that_leaves_it_out(error, advice):
    def answer(request):
        return (
            error if any(name in request and value is None for name, value in advice.items()) else completion("fine")
        )

    sampling = SamplingParams(max_new_tokens=9, temperature=0, top_p=0.5)
    with endpoint(answer) as (url, requests):
        given = {"base_url": url, "sampling": sampling, "role": "judge"}
        with pytest.raises(InputError, match=r"the request .HTTP 4\d\d.: add extra_body: .* to the judge ") as caught:
            OpenAIBackend("m", **given).open(["hi"], seeds=[0]).sample()
        assert yaml.safe_load(re.search(r"extra_body: (\{.*?\})", str(caught.value))[1]) == advice
        (sample,) = OpenAIBackend("m", **given, extra_body=advice).open(["hi"], seeds=[0]).sample()
    assert sample.text == "fine" and len(requests) == 2
    assert requests[1].items() >= {name: value for name, value in advice.items() if value is not None}.items()


def test_an_error_that_names_no_field_that_was_sent_gives_no_setting():
    place = [{"loc": ["body", "messages", 0, "role"], "msg": "roles must alternate, see seed and max_tokens"}]
    message = "check the sampling and extra_body of the target .*roles must alternate"
    with endpoint(lambda request: (422, {"detail": place})) as (url, _), pytest.raises(InputError, match=message):
        OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("seed", "must be a mapping of fields"),
        ({1: 2}, "must be a mapping of fields"),
        ({"messages": []}, "holds 'messages', which is not a field to change"),
        ({"model": None}, "holds 'model'"),
        ({"stream": True}, "holds 'stream'"),
        (
            {"max_completion_tokens": "max_tokens"},
            "max_completion_tokens must be a number of tokens, got 'max_tokens'",
        ),
        ({"max_completion_tokens": True}, "must be a number of tokens, got True"),
        ({"top_k": math.nan}, "(top_k must be a finite number, got nan|cannot be sent as JSON)"),
        ({"since": date(2024, 1, 1)}, "cannot be sent as JSON"),
        ({"api_key": "hunter2"}, "holds a key, a token or a password"),
        ({"data": [{"authentication": {"key": "hunter2"}}]}, "holds a key"),
        ({"user": f"me {KEY}"}, "holds a key"),
    ],
)
def test_fields_that_cannot_be_sent_or_are_secret_are_refused(fields, message):
    for refuse in (lambda **given: OpenAIBackend("m", **given), lambda **given: Endpoint(model="m", **given)):
        with pytest.raises(InputError, match=f"^extra_body.*{message}") as caught:
            refuse(base_url="http://localhost:9/v1", extra_body=fields)
        assert "hunter2" not in str(caught.value) and KEY not in str(caught.value)


def test_a_limit_under_another_name_holds_for_log_probabilities_too():
    reader = OpenAIBackend("m", base_url="http://localhost:9/v1", prompt_logprobs="vllm", extra_body={"seed": None})
    (row,) = reader.open(["hi"], seeds=[0]).rows
    renamed = {"max_tokens": None, "max_completion_tokens": 64, "prompt_cache_key": "a"}
    for fields, limit in ((reader._extra_body, {"max_tokens": 1}), (renamed, {"max_completion_tokens": 1})):
        backend = OpenAIBackend("m", base_url="http://localhost:9/v1", prompt_logprobs="vllm", extra_body=fields)
        body = backend._prompt_reader.request(backend._body, row.messages, "ho").body
        assert {name: value for name, value in body.items() if name.startswith("max")} == limit
