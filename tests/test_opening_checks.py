"""Openings that a chat template refuses or a window cuts: told before the first tree."""

import logging

import pytest
from conftest import make_gpt2, make_tokenizer
from test_dialogue import CHATML, STRICT, chat_backend, seen

from astra_trl import ASTEvaluator, HFASTSystem, HFBackend, InputError, KeywordScorer, SamplingParams, Turn
from astra_trl.rollout import opening_checks
from astra_trl.rollout.opening_checks import check_openings

# As Phi-3's first: what is neither the user's nor the assistant's is left out without a word.
SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>\\n<|assistant|>' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\\n' }}{% endif %}{% endfor %}"
)
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
USER_LAST = (
    "{% if messages[-1].role == 'assistant' %}{{ raise_exception('the user speaks last') }}{% endif %}" + CHATML
)


def chats(tester=CHATML, target=CHATML, baseline=None):
    baseline = None if baseline is None else chat_backend(baseline)
    return HFASTSystem(chat_backend(tester), chat_backend(target), baseline, KeywordScorer(["soup"]))


def turns(*speakers):
    return tuple(Turn(speaker, f"words of the {speaker}") for speaker in speakers)


@pytest.mark.parametrize(
    ("templates", "fine", "opening", "message"),
    [
        (
            {"target": STRICT},
            turns("user"),
            turns("assistant", "user"),
            "the target: .* assistant, user: .* alternate",
        ),
        ({"target": USER_LAST}, turns("user"), turns("user", "assistant"), "the target: .* user, assistant: the user"),
        (
            {"tester": USER_LAST},
            "words",
            turns("assistant", "user"),
            "the tester: .* user, assistant: the user speaks",
        ),
        (
            {"baseline": USER_LAST},
            "words",
            turns("user"),
            "the baseline: .* system, assistant: the user",
        ),
    ],
)
def test_an_opening_that_a_template_refuses_is_named(templates, fine, opening, message):
    system = chats(**templates)
    openings = [fine] * 4 + [opening, fine]
    with pytest.raises(InputError, match=f"^opening 5 of 6 \\('words of the .*'\\) does not fit {message}"):
        check_openings(system, openings, 1)
    with pytest.raises(InputError, match=message):
        ASTEvaluator(system, openings)
    assert check_openings(system, [fine] * 6, 3) == [fine] * 6


def test_what_grows_from_an_opening_is_checked_too():
    system = chats(target=ONE_TURN)
    check_openings(system, ["hello"], 1)
    with pytest.raises(InputError, match="opening 1 of 1 .* the target: .* user, assistant, user: one turn only"):
        check_openings(system, ["hello"], 2)


def test_a_template_that_leaves_the_system_message_out_gets_it_in_the_first_user_turn():
    backend = chat_backend(SILENT, system_prompt="Be kind.")
    session = backend.open(["Hello"], seeds=[0])
    assert seen(session) == "<|user|>Be kind.\nHello<|end|>\n<|assistant|>"
    system = chats(tester=SILENT)
    text = seen(system.tester.open([system.tester_prompt(turns("opening"))], seeds=[0]))
    assert text.startswith("<|user|>You take part in a safety test") and "words of the opening<|end|>" in text


def test_a_template_that_fails_is_refused_with_its_reason():
    with pytest.raises(InputError, match="refuses a conversation of user: TypeError: can only concatenate str"):
        chat_backend("{{ messages[0].content + 3 }}")


def test_openings_that_a_window_cuts_are_counted_once_for_each_side(caplog, monkeypatch):
    tokenizer = make_tokenizer()
    sampling = SamplingParams(max_new_tokens=8)
    tester, target = (HFBackend(make_gpt2(tokenizer, positions=size), tokenizer, sampling) for size in (64, 40))
    system = HFASTSystem(tester, target, None, KeywordScorer(["soup"]))
    long = "xyz " * 20
    openings = ["hello", "a park with soup and bread, all day", "good morning " * 6, *[long] * 3]
    lengths = [len(row.ids) for row in tester.dialogue.open(openings)]
    assert len(openings[1]) > 32 >= lengths[1] and 32 < lengths[2] <= 56 < lengths[3]  # bytes alone do not tell
    opening_checks._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert check_openings(system, openings, 3) is openings
        check_openings(system, openings, 3)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "3 of 6 openings are longer than the 56 tokens that the tester's window of 64 leaves them",
        "4 of 6 openings are longer than the 32 tokens that the target's window of 40 leaves them",
    ]
    monkeypatch.setattr(opening_checks, "MAX_COUNTED", 10)
    caplog.clear()
    check_openings(system, [long] * 100 + ["hi"], 3)
    assert caplog.records[0].getMessage().startswith("about 100 of 101 openings")


def test_counting_takes_the_template_into_account():
    backend = chat_backend(sampling=SamplingParams(max_new_tokens=8))
    prompt = [{"role": "user", "content": "good morning"}, {"role": "assistant", "content": "soup"}]
    texts = [message["content"] for message in prompt]
    around = opening_checks._tokens_around(backend, prompt, texts, "target", 2)
    assert opening_checks._counts(backend, [(texts, around)]) == [len(backend.dialogue.open([prompt])[0].ids)]
