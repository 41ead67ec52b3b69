"""Endpoints that are not there, that are something else, or that never finish an answer."""

import itertools
import logging
import re
import socket
import ssl

import pytest
from endpoints import completion, endpoint
from flaky import free_port
from loopback import sending

from astra_trl import Exchange, InputError
from astra_trl.backends.api.connection import explain
from astra_trl.backends.api.openai import OpenAIBackend
from astra_trl.errors import RunStopped
from astra_trl.scorers import JudgeScorer

OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "header": (OK + b"X-Name: ", b"a"),
    "informational responses": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a flood of them": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000),
    "chunk extension": (OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
    "body": (OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "nothing": (b"", b""),
}


def ask(url, **settings):
    (sample,) = OpenAIBackend("m", base_url=url, **{"max_retries": 0, **settings}).open(["hi"], seeds=[0]).sample()
    return sample


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_attempt_has_a_deadline_whatever_arrives(kind):
    start, rest = ENDLESS[kind]
    with sending(lambda: itertools.chain([start], itertools.repeat(rest))) as (port, left):
        sample = ask(f"http://127.0.0.1:{port}/v1", timeout=0.4)
        assert sample.error == "not answered completely within 0.4 seconds"
        assert not rest or left.wait(10)  # the connection is closed, so that nothing more arrives


@pytest.mark.parametrize("role", ["target", "judge"])
def test_a_server_that_was_never_there_stops_the_run_at_the_first_call(role):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(InputError, match=f"^{url} cannot be reached .*refused, no .*base_url of the {role}$"):
        ask(url, max_retries=10) if role == "target" else JudgeScorer("m", base_url=url)([Exchange((), "a", "b")])


def test_an_unknown_host_stops_the_run_at_the_first_call(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        InputError, match=r"^http://nowhere.example/v1 cannot be reached \(no host of that name is known"
    ):
        ask("http://nowhere.example/v1", max_retries=10)


def test_the_wrong_scheme_and_another_protocol_stop_the_run_at_the_first_call():
    with (
        endpoint(lambda request: completion("fine")) as (url, _),
        pytest.raises(InputError, match="begins with http:"),
    ):
        ask(url.replace("http", "https"), max_retries=10)
    with (
        sending(lambda: [b"SSH-2.0-OpenSSH_9\r\n\r\n"]) as (port, _),
        pytest.raises(InputError, match="not speak HTTP"),
    ):
        ask(f"http://127.0.0.1:{port}/v1", max_retries=10)


def test_a_certificate_that_is_not_valid_names_the_reason():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    outer = OSError("all attempts failed")
    outer.__cause__ = error
    text, is_lost = explain(outer)
    assert is_lost and "not valid (self-signed certificate; SSL_CERT_FILE can" in text


def test_a_connection_that_is_cut_is_tried_again_even_at_the_first_call():
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"
    answers = iter([[], [], [body]])
    with sending(lambda: next(answers)) as (port, _):
        backend = OpenAIBackend("m", base_url=f"http://127.0.0.1:{port}/v1", max_retries=2)
        backend.caller.sleep = lambda seconds: None
        (sample,) = backend.open(["hi"], seeds=[0]).sample()
    assert sample.error is not None and backend.usage["requests"] == 3


def test_a_server_that_is_away_after_it_was_there_is_waited_for():
    port = free_port()
    url, waits, back = f"http://127.0.0.1:{port}/v1", [], []
    body = b'{"choices": [{"message": {"content": "fine"}}]}'
    parts = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    backend = OpenAIBackend("m", base_url=url)

    def server():
        one = sending(lambda: [parts], port)
        one.__enter__()
        return one

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            back.append(server())

    backend.caller.sleep = sleep
    first = server()
    assert backend.open(["hi"], seeds=[0]).sample()[0].text == "fine"
    first.__exit__(None, None, None)
    assert backend.open(["ho"], seeds=[0]).sample()[0].text == "fine"
    back[0].__exit__(None, None, None)
    assert len(waits) >= 3


@pytest.mark.parametrize(
    ("status", "path", "message"),
    [
        (200, "", r"answers with a web page: check the base_url of the target \(most end in /v1\)$"),
        (404, "", r"\(HTTP 404\): check the name, the address \(most end in /v1\) and OPENAI_API_KEY"),
        (404, "/v1", r"\(HTTP 404\): check the name, the address and OPENAI_API_KEY"),
        (405, "/v1", r"\(HTTP 405\): check the name, the address and"),
        (
            501,
            "/v1",
            r"\(HTTP 501\): check the name, .* \(InternalServerError: .* 501 - a web page\)$",
        ),
    ],
)
def test_a_web_server_in_place_of_an_endpoint_stops_the_run_at_the_first_call(status, path, message):
    page = status, b"<!doctype html><title>Hello</title>"
    with endpoint(lambda request: page) as (url, requests), pytest.raises(InputError, match=message):
        ask(url.removesuffix("/v1") + path, max_retries=10)
    assert len(requests) == 1


def test_the_first_failure_is_logged_at_once_and_every_long_wait_with_its_reason(caplog):
    answers = itertools.chain([(503, {"error": {"message": "loading"}})] * 3, itertools.repeat(completion("fine")))
    with endpoint(lambda request: next(answers), {"Retry-After": "50"}) as (url, _):
        backend = OpenAIBackend("m", base_url=url, max_concurrency=1)
        backend.caller.sleep = lambda seconds: None
        with caplog.at_level(logging.WARNING):
            assert backend.open(["hi", "ho"], seeds=[0, 1]).sample()[0].text == "fine"
    failed, *waits = caplog.messages
    assert re.match(
        f"a call of target 'm' at {url} failed and is retried: InternalServerError: .*503.*loading", failed
    )
    assert len(waits) == 1  # calls that wait at the same time say so once
    assert re.match(f"calls of target 'm' at {url} wait for 5. seconds: InternalServerError: .*loading", waits[0])


@pytest.mark.parametrize("after", ["86400", "Fri, 31 Dec 9999 23:59:59 GMT", "inf"])
def test_a_server_that_asks_for_more_than_ten_minutes_stops_the_run_which_can_be_resumed(after):
    refusal = 429, {"error": {"message": "daily limit"}}
    with endpoint(lambda request: refusal, {"Retry-After": after}) as (url, requests):
        message = f"target 'm' at {url} asks to wait for .* a call waits for at most 600.*daily limit"
        with pytest.raises(RunStopped, match=message):
            ask(url, max_retries=10)
    assert len(requests) == 1
