import json
import logging
import math
import threading
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from astra_trl import Exchange, InputError
from astra_trl.backends.base import SamplingParams, SavedRow
from astra_trl.backends.openai import OpenAIBackend
from astra_trl.scorers import JudgeScorer

KEY = "sk-very-secret"


@contextmanager
def endpoint(answer):
    """A server on this machine; `answer(request)` gives (status, body), the request being headers and JSON."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(
                {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}, **body}
            )
            status, said = answer(requests[-1])
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def completion(text):
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}


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
def test_what_no_later_call_would_mend_stops_at_once_and_names_no_key(status):
    refusal = status, {"error": {"message": f"bad key {KEY}"}}
    with (
        endpoint(lambda request: refusal) as (url, requests),
        pytest.raises(InputError, match=f"refuses model 'm' .HTTP {status}.: check the name") as caught,
    ):
        OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert len(requests) == 1
    assert KEY not in str(caught.value) and caught.value.__cause__ is None


def test_a_key_is_asked_for_where_one_is_needed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="set OPENAI_API_KEY, or give the base_url"):
        OpenAIBackend("gpt")
    with endpoint(lambda request: completion("fine")) as (url, _):
        (sample,) = OpenAIBackend("m", base_url=url).open(["hi"], seeds=[0]).sample()
    assert sample.text == "fine"


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


def test_a_chat_that_was_put_away_goes_on_as_it_would_have():
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
