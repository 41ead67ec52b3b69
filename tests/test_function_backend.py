"""A Python function as the target."""

import asyncio
import re
import sys
import threading
from functools import partial

import pytest

from astra_trl import ASTSampler, HFASTSystem, InputError, KeywordScorer
from astra_trl.backends.api.calls import Caller
from astra_trl.backends.function import FunctionBackend
from astra_trl.backends.hf import HFBackend
from astra_trl.errors import TooManyFailed
from astra_trl.rewards import Harm, Reward


def said(backend, prompts=("hi",)):
    backend.caller.sleep = lambda seconds: None
    return backend.open(list(prompts), seeds=range(len(prompts))).sample()


def test_a_function_gets_the_messages_of_a_chat():
    asked = []

    def answer(messages):
        asked.append(messages)
        return f"{len(messages)} messages"

    session = FunctionBackend(answer, max_concurrency=1).open(["good morning"], seeds=[0]).branch([(0, 0), (0, 1)])
    session.append(["a", "b"])
    assert [sample.text for sample in session.sample()] == ["1 messages"] * 2
    session.append(["c", "d"])
    session.sample()
    assert asked[1] == [{"role": "user", "content": "good morning\nb"}]
    assert asked[2] == [
        {"role": "user", "content": "good morning\na"},
        {"role": "assistant", "content": "1 messages"},
        {"role": "user", "content": "c"},
    ]


def test_an_async_function_is_awaited_several_at_a_time_in_one_loop():
    loops, at_once, most = set(), 0, 0

    async def answer(messages):
        nonlocal at_once, most
        loops.add(id(asyncio.get_running_loop()))
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        return messages[-1]["content"].upper()

    backend = FunctionBackend(answer, max_concurrency=3)
    assert [sample.text for sample in said(backend, "abcdefg")] == list("ABCDEFG")
    assert [sample.text for sample in said(backend, "hi")] == ["H", "I"]
    assert most == 3 and len(loops) == 1


def test_a_function_may_be_called_within_a_running_loop():
    async def answer(messages):
        return "fine"

    async def notebook():
        return said(FunctionBackend(answer))

    assert asyncio.run(notebook())[0].text == "fine"


def test_a_function_of_batches_gets_no_more_than_it_takes_at_once():
    sizes = []

    def answer(chats):
        sizes.append(len(chats))
        return [chat[-1]["content"] * 2 for chat in chats]

    backend = FunctionBackend(answer, batched=True, batch_size=2, max_concurrency=1)
    assert [sample.text for sample in said(backend, "abcde")] == ["aa", "bb", "cc", "dd", "ee"]
    assert sizes == [2, 2, 1] and backend.usage["calls"] == 5 and backend.usage["requests"] == 3


def test_a_function_that_raises_is_retried_and_then_an_error():
    tries = []

    def answer(messages):
        tries.append(messages[0]["content"])
        if messages[0]["content"] == "bad":
            raise LookupError("no such\nbook")
        if tries.count("shaky") == 1 and messages[0]["content"] == "shaky":
            raise OSError("once")
        return "fine"

    backend = FunctionBackend(answer, max_concurrency=1, max_retries=2)
    good, shaky, bad = said(backend, ["good", "shaky", "bad"])
    assert (good.text, shaky.text, shaky.error) == ("fine", "fine", None)
    assert bad.text == "" and re.fullmatch(
        r"the function '\S+answer' raised LookupError: no such book \(\S*test_function_backend\.py:\d+\)", bad.error
    )
    assert tries == ["good", "shaky", "shaky", "bad", "bad", "bad"]
    assert (backend.usage["failed"], backend.usage["calls"]) == (1, 3)


@pytest.mark.parametrize(
    ("returned", "batched", "error"),
    [
        (None, False, "None: return a text"),
        (b"bytes", False, "b'bytes', of type bytes: return a text"),
        ({"content": "a"}, False, "an object of type dict: return a text"),
        ((text for text in "ab"), False, "an object of type generator: return a text"),
        (["a"], True, "1 texts: return a list of 2 texts"),
        ("ab", True, "'ab', of type str: return a list of 2 texts"),
    ],
)
def test_results_that_are_not_texts_are_errors_without_a_retry(returned, batched, error):
    calls = []

    def answer(messages):
        calls.append(1)
        return returned

    samples = said(FunctionBackend(answer, batched=batched, name="mine.answer"), ["a", "b"])
    assert [sample.error for sample in samples] == [f"the function 'mine.answer' returned {error}"] * 2
    assert len(calls) == (1 if batched else 2)


def test_one_wrong_answer_of_a_batch_is_its_own_error():
    one, other = said(FunctionBackend(lambda chats: ["fine", 3], batched=True, name="mine"), ["a", "b"])
    assert one.text == "fine" and other.error == "the function 'mine' returned 3, of type int: return a text"


def leave(messages):
    sys.exit(0)


async def leave_later(messages):
    await asyncio.sleep(0)
    sys.exit("done")


@pytest.mark.parametrize(("function", "code"), [(leave, "0"), (leave_later, "done")])
def test_a_function_that_exits_ends_the_run_with_a_line(function, code):
    place = r"\S*test_function_backend\.py:\d+"
    with pytest.raises(
        InputError, match=rf"^the function '{function.__name__}' called sys.exit\({code}\), which .* \({place}\)$"
    ):
        said(FunctionBackend(function), ["a", "b"])
    assert said(FunctionBackend(wait))[0].text == "fine"  # the loop of async functions is as it was


async def wait(messages):
    return "fine"


def test_answers_have_whole_characters_and_are_cut():
    half, long = said(
        FunctionBackend(lambda messages: "\ud800" if messages[0]["content"] == "a" else "x" * 30, max_characters=10),
        ["a", "b"],
    )
    assert (half.text, long.text) == ("\ufffd", "x" * 10)


def test_too_many_failures_end_the_run():
    def answer(messages):
        raise ValueError("never")

    with pytest.raises(TooManyFailed, match="6 of 6 calls .*ValueError: never"):
        said(FunctionBackend(answer, max_concurrency=1, max_retries=0), ["a"] * 50)


def test_an_input_error_of_a_function_ends_the_run():
    def answer(messages):
        raise InputError("set SHOP_KEY")

    with pytest.raises(InputError, match="^set SHOP_KEY$"):
        said(FunctionBackend(answer))


def test_a_function_that_is_given_as_the_target_is_wrapped(gpt2_folder):
    def shop(messages):
        return f"You said {messages[-1]['content']}"

    reward = Reward({"harm": (1.0, Harm("harm"))})
    system = HFASTSystem(str(gpt2_folder), shop, None, KeywordScorer(["you"]), reward=reward)
    assert isinstance(system.target, FunctionBackend) and system.target.description["model"].endswith("shop")
    (tree,) = ASTSampler(system, ["soup"], 2, 2).grow(["soup"], [0])
    assert all(node.exchange.response.startswith("You said") and node.reward == 1.0 for node in tree.nodes())


def test_models_and_backends_are_no_functions(gpt2_folder):
    model = HFBackend.from_pretrained(str(gpt2_folder), device="cpu")
    assert callable(model.model)  # an nn.Module
    reward = Reward({"harm": (1.0, Harm("harm"))})
    for target in (model, model.model):
        system = HFASTSystem(model, target, None, KeywordScorer(["a"]), reward=reward)
        assert isinstance(system.target, HFBackend)
    for roles in ((lambda m: "", str(gpt2_folder), None), (str(gpt2_folder), 3, None)):
        with pytest.raises(InputError, match=r"^the (tester|target) is a (function|int): give a Hub id"):
            HFASTSystem(*roles, KeywordScorer(["a"]))


def test_the_likelihood_is_the_baselines_and_one_line_says_so(gpt2_folder, caplog):
    system = HFASTSystem(str(gpt2_folder), lambda messages: "fine", str(gpt2_folder), KeywordScorer(["a"]))
    sampler = ASTSampler(system, ["soup"], 2, 1)
    (tree,) = sampler.grow(["soup"], [0])
    assert all(node.probe_logprob_per_token < 0 for node in tree.nodes())
    said_so = [record for record in caplog.records if "the likelihood is the baseline's" in record.getMessage()]
    assert len(said_so) == 1 and "FunctionBackend" in said_so[0].getMessage()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(
        InputError, match="the target's function is 'function', of type str: give a function of the messages"
    ):
        FunctionBackend("function")
    with pytest.raises(InputError, match=r"takes \(\), but is called with \(messages\)"):
        FunctionBackend(lambda: "fine")
    with pytest.raises(InputError, match=r"is the class Caller: give an instance, Caller\(...\)"):
        FunctionBackend(Caller)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        FunctionBackend(len, batched=True, batch_size=0)
    with pytest.raises(InputError, match="max_characters"):
        FunctionBackend(len, max_characters=0)
    assert FunctionBackend(partial(len)).name == "partial"


def test_an_interrupted_batch_leaves_no_thread_waiting():
    def answer(messages):
        if messages[0]["content"] == "stop":
            raise InputError("stop")
        raise OSError("again")

    backend = FunctionBackend(answer, max_retries=100)
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="^stop$"):
        backend.open(["go", "stop"], seeds=[0, 0]).sample()
    for thread in set(threading.enumerate()) - before:
        if "ThreadPoolExecutor" in thread.name:
            thread.join(5)
            assert not thread.is_alive()
