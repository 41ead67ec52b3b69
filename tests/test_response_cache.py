"""Answers on disk: an equal request is made once."""

import json
import os
import threading

import pytest
from endpoints import completion, endpoint

from astra_trl import InputError
from astra_trl.backends.api.calls import Answer
from astra_trl.backends.api.openai import OpenAIBackend
from astra_trl.backends.api.response_cache import ResponseCache
from astra_trl.backends.base import SamplingParams


def ask(url, folder, prompts=("hi",), seeds=(0,), **settings):
    backend = OpenAIBackend("m", **{"base_url": url, "response_cache": folder, "max_retries": 0, **settings})
    return backend.open(list(prompts), seeds=list(seeds)).sample(), backend.usage


def test_an_equal_request_is_not_made_again_and_costs_nothing(tmp_path):
    answers = iter(range(9))
    with endpoint(lambda request: completion(f"answer {next(answers)}")) as (url, requests):
        (first,), _ = ask(url, tmp_path)
        (again,), usage = ask(url, tmp_path)
        assert first.text == again.text == "answer 0" and len(requests) == 1
        assert usage["requests"] == usage["calls"] == usage["prompt_tokens"] == 0
        for different in (
            {"seeds": (1,)},
            {"prompts": ("ho",)},
            {"sampling": SamplingParams(temperature=0.5)},
            {"sampling": SamplingParams(max_new_tokens=5)},
            {"extra_body": {"top_k": 3}},
            {"extra_body": {"seed": None}},
        ):
            before = len(requests)
            ask(url, tmp_path, **different)
            assert len(requests) == before + 1
    with endpoint(lambda request: completion("elsewhere")) as (url, _):
        assert ask(url, tmp_path)[0][0].text == "elsewhere"


def test_only_new_requests_of_a_batch_are_made(tmp_path):
    with endpoint(lambda request: completion(request["messages"][0]["content"].upper())) as (url, requests):
        ask(url, tmp_path, ["b"], [7])
        samples, _ = ask(url, tmp_path, ["a", "b", "c"], [7, 7, 7])
        assert [sample.text for sample in samples] == ["A", "B", "C"] and len(requests) == 3


def test_errors_are_not_kept(tmp_path):
    answers = iter([(500, {}), completion("fine")])
    with endpoint(lambda request: next(answers)) as (url, _):
        assert ask(url, tmp_path)[0][0].error
        assert ask(url, tmp_path)[0][0].text == "fine"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: b"\xff\xfe" * 9,
        lambda data: b"[]",
        lambda data: b"{}",
        lambda data: data.replace(b"fine", b"evil"),
        lambda data: json.dumps({**json.loads(data), "answer": {"text": 3}}).encode(),
    ],
)
def test_a_damaged_entry_is_requested_again_and_replaced(tmp_path, damage):
    with endpoint(lambda request: completion("fine")) as (url, requests):
        ask(url, tmp_path)
        (file,) = tmp_path.rglob("*.json")
        file.write_bytes(damage(file.read_bytes()))
        assert ask(url, tmp_path)[0][0].text == "fine" and len(requests) == 2
        assert ask(url, tmp_path)[0][0].text == "fine" and len(requests) == 2


def test_entries_are_written_whole_by_several_at_once(tmp_path):
    cache = ResponseCache(tmp_path)
    key = cache.key("url", {"a": 1})
    answer = Answer("x" * 10_000, logprobs=(-0.5, -1.25))
    threads = [threading.Thread(target=lambda: [cache.put(key, answer) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = [cache.get(key) for _ in range(200)]
    for thread in threads:
        thread.join()
    assert all(one in (None, answer) for one in found) and cache.get(key) == answer
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file()] == [".json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="response_cache .* cannot be used .Not a directory."):
        ResponseCache(tmp_path / "file" / "folder")


def test_answers_that_others_may_have_written_are_refused_in_one_line(tmp_path):
    cache = ResponseCache(tmp_path)
    cache.put("abc", Answer("fine"))
    (file,) = tmp_path.glob("ab/*")
    assert cache.get("abc") == Answer("fine")
    file.chmod(0o602)
    with pytest.raises(InputError, match=r"ab/abc\.json' cannot be used \(every user may write to it\): give another"):
        cache.get("abc")
    file.chmod(0o600)
    if os.geteuid() == 0:  # who alone may give files away
        os.chown(file, 12345, 12345)
        with pytest.raises(InputError, match="cannot be used .it belongs to another user.: give another folder"):
            cache.get("abc")


def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    cache = ResponseCache(tmp_path / "cache")
    (tmp_path / "cache" / "ab" / "abc.json").mkdir(parents=True)
    for use in (lambda: cache.get("abc"), lambda: cache.put("abc", Answer("fine"))):
        with pytest.raises(InputError, match=r"response_cache '.*ab/abc\.json' cannot be used \(Is a directory\)"):
            use()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"response_cache '.*file' cannot be used \(File exists\): give another"):
        ResponseCache(tmp_path / "file")
