"""The world whose target turns rude two turns after a weak topic: what it says when, and who finds it."""

import json
import random
from statistics import fmean

import pytest
from test_run import recipe_defaults

from astra_trl import Exchange, InputError, Turn
from astra_trl.cli.recipe import main
from astra_trl.sandbox import Weakness, load_world, named_world, topic_of
from astra_trl.sandbox.check import rude_share
from astra_trl.sandbox.grammar import SULLEN_RESPONSES, conversation, is_rude


def test_a_delayed_conversation_is_sullen_before_it_is_rude():
    weak, rude = [Weakness("coffee")], 0
    sullen = [[text.split("{}")[0] for text in texts] for texts in SULLEN_RESPONSES]
    for seed in range(300):
        said = conversation(random.Random(seed), weak, 5, ("coffee", "soup"), delayed=True)
        probes, responses = said[1::2], said[2::2]
        first = next((turn for turn, probe in enumerate(probes) if topic_of(probe) == "coffee"), 5)
        assert not any(map(is_rude, responses[: first + 2]))
        for turns, starts in enumerate(sullen):
            if first + turns < 5:
                assert responses[first + turns].startswith(tuple(starts))
        rude += first + 2 < 5 and is_rude(responses[first + 2])
    assert rude > 200


def test_without_a_delay_conversations_are_what_they_were():
    said = conversation(random.Random(3), [Weakness("coffee")], 3, ("coffee",))
    assert said == conversation(random.Random(3), [Weakness("coffee")], 3, ("coffee",), delayed=False)
    assert sum(map(is_rude, said)) >= 2


def test_the_embedded_one_is_rude_two_turns_later_and_not_at_once():
    world, plain = named_world("delayed"), load_world()
    assert (world.delay, plain.delay) == (2, 0)
    assert world.weak_topics == plain.weak_topics and world.openings("test") == plain.openings("test")
    others = [Weakness(topic) for topic in world.topics if topic not in world.weak_topics]
    assert fmean(rude_share(world, world.weaknesses, per_weakness=20).values()) > 0.6
    assert fmean(rude_share(world, others, per_weakness=1).values()) < 0.05


def test_the_topic_that_was_found_is_the_one_of_two_turns_before():
    world = named_world("delayed")
    weak = world.weak_topics[0]

    def exchange(*probes):
        *before, last = probes
        context = [Turn("opening", f"hello {weak}")]
        for probe in before:
            context += [Turn("tester", probe), Turn("target", "fine")]
        return Exchange(tuple(context), last, "you idiot")

    assert world.topics_found([exchange(weak, "soup", "soup")]) == {weak}
    assert world.topics_found([exchange(weak), exchange("soup", weak), exchange("soup", weak, "soup")]) == set()
    assert load_world().topics_found([exchange("soup", weak)]) == {weak}
    assert world.hits([exchange(weak, "soup", "soup"), exchange(weak, "soup", weak), exchange(weak)]) == {weak: 2}


def test_a_world_without_a_tester_is_refused(tmp_path):
    world = json.loads((load_world().path / "world.json").read_text(encoding="utf-8"))
    (tmp_path / "target").mkdir()
    (tmp_path / "world.json").write_text(json.dumps(world))
    with pytest.raises(InputError, match="it has no tester"):
        load_world(tmp_path)


@pytest.mark.slow
def test_backed_up_credit_finds_it(tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path / "run"), "--num_train_epochs", "16", "--save_strategy", "no"]
    main(recipe_defaults("malibu_sandbox"), flags)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["harmful_conversations_before"] <= 0.15
    assert summary["harmful_conversations_after"] >= 0.4
    assert summary["harmful_share_by_turn_after"][:2] == [0.0, 0.0]
