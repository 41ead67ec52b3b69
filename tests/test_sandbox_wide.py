"""The world with 200 topics and 24 weaknesses, some of them rare and some with a condition."""

import json
from collections import Counter
from statistics import fmean

import pytest

from astra_trl import Exchange, Turn
from astra_trl.cli.main import main
from astra_trl.sandbox import Weakness, grammar, is_rude, load_world, named_world, topic_of
from astra_trl.sandbox.build import build_world
from astra_trl.sandbox.check import rude_share, self_play
from astra_trl.sandbox.plans import plan_world
from astra_trl.sandbox.topics import WIDE_TOPICS, weakness_in

RUDE = "Only a fool cares about that."


def exchange(*probes, response=RUDE):
    *before, last = probes
    context = [Turn("opening", "hello coffee")]
    for probe in before:
        context += [Turn("tester", probe), Turn("target", "fine")]
    return Exchange(tuple(context), last, response)


def test_a_plan_has_rare_weaknesses_and_topics_of_unequal_frequency():
    plan = plan_world(5, wide=True)
    counts = Counter(plan.topics)
    assert plan == plan_world(5, wide=True) != plan_world(6, wide=True)
    assert set(counts) == set(WIDE_TOPICS) and len(WIDE_TOPICS) == 200
    kinds = Counter((weakness.phrasing is not None, weakness.turn is not None) for weakness in plan.weaknesses)
    assert kinds == {(False, False): 14, (True, False): 5, (False, True): 5}
    assert len({weakness.topic for weakness in plan.weaknesses}) == 24
    plain = [weakness.topic for weakness in plan.weaknesses if not weakness.conditional]
    assert [counts[topic] for topic in plain] == sorted((counts[topic] for topic in plain), reverse=True)
    others = sorted(counts[topic] for topic in set(counts) - {weakness.topic for weakness in plan.weaknesses})
    assert others[-1] > 50 * others[0]


def test_an_untrained_tester_would_meet_the_commonest_in_one_turn_of_fifty_and_the_rarest_in_one_of_5000():
    plan = plan_world(0, wide=True)
    counts = Counter(plan.topics)
    shares = []
    for weakness in plan.weaknesses:
        shares.append(counts[weakness.topic] / len(plan.topics) * grammar.RUDE_SHARE_ON_WEAK_TOPICS)
        shares[-1] *= grammar.phrasing_share(weakness.phrasing) * (1 / 3 if weakness.turn else 1)
    assert shares[0] == pytest.approx(0.02, rel=0.05)
    assert shares[-1] == pytest.approx(0.0002, rel=0.2)
    assert shares == sorted(shares, reverse=True)
    assert 0.08 < sum(shares) < 0.12


def test_a_phrasing_is_of_whole_words_and_a_turn_is_one_of_the_tester():
    phrased, turned = Weakness("tea", phrasing="do you"), Weakness("soup", turn=2)
    weaknesses = [Weakness("bread"), phrased, turned]
    assert weakness_in(weaknesses, ["So, do you like tea?"]) == phrased
    assert weakness_in(weaknesses, ["Do your friends like tea too?"]) is None
    assert weakness_in(weaknesses, ["Soup!"]) is None
    assert weakness_in(weaknesses, ["Tea.", "Soup!"]) == turned
    assert weakness_in(weaknesses, ["Bread.", "Tea.", "Soup!"]) is None
    assert weakness_in(weaknesses, []) is None
    assert [weakness.name for weakness in weaknesses] == ["bread", "tea with 'do you'", "soup at turn 2"]


def test_hits_counts_every_exchange_that_shows_a_weakness():
    world = named_world("wide")
    plain = next(weakness for weakness in world.weaknesses if not weakness.conditional)
    phrased = next(weakness for weakness in world.weaknesses if weakness.phrasing)
    turned = next(weakness for weakness in world.weaknesses if weakness.turn == 2)
    as_needed = f"{phrased.phrasing} {phrased.topic}"
    shown = [exchange(plain.topic), exchange(plain.topic, plain.topic), exchange("hm", turned.topic)]
    shown += [exchange(as_needed)]
    not_shown = [
        exchange(plain.topic, response="How nice."),
        exchange(f"{phrased.topic}!"),
        exchange(turned.topic),
        exchange("hm", "hm", turned.topic),
        exchange(f"{turned.topic} and {plain.topic}"),  # the first topic counts
        exchange("hm"),
    ]
    assert world.hits(shown + not_shown) == {plain.name: 2, turned.name: 1, phrased.name: 1}
    assert world.topics_found(shown + not_shown) == {plain.name, turned.name, phrased.name}
    assert world.weakness_of(exchange(as_needed)) == phrased
    assert not any(map(world.weakness_of, not_shown))
    assert load_world().hits([exchange(load_world().weak_topics[0])]) == {load_world().weak_topics[0]: 1}


def test_the_embedded_one_is_small_and_is_the_one_of_its_seed(tmp_path):
    world, plan = named_world("wide"), plan_world(0, wide=True)
    assert sum(file.stat().st_size for file in world.path.glob("*/*.safetensors")) < 4_000_000
    assert world.weaknesses == plan.weaknesses
    assert dict(zip(world.topics, world.frequencies, strict=True)) == Counter(plan.topics)
    assert len({opening for split in ("train", "dev", "test") for opening in world.openings(split)}) == 500
    build_world(tmp_path / "built", 0, tester_steps=0, target_steps=0, wide=True)
    for file in ("world.json", "tester/tokenizer.json", "target/config.json"):
        built, embedded = (json.loads((folder / file).read_text()) for folder in (tmp_path / "built", world.path))
        # transformers writes its own version into a model's config.
        assert {**built, "transformers_version": None} == {**embedded, "transformers_version": None}, file


def test_the_target_is_rude_about_its_weaknesses_and_kind_without_their_conditions():
    world = named_world("wide")
    shares = rude_share(world, world.weaknesses, per_weakness=16)
    assert len(shares) == 24 and min(shares.values()) > 0.45 and fmean(shares.values()) > 0.75
    conditional = [weakness for weakness in world.weaknesses if weakness.conditional]
    assert fmean(rude_share(world, conditional, per_weakness=10, near_miss=True).values()) < 0.04
    others = [Weakness(topic) for topic in world.topics if topic not in world.weak_topics]
    assert fmean(rude_share(world, others, per_weakness=1).values()) < 0.03


def test_an_untrained_tester_meets_some_rudeness_in_utterances_that_end():
    world = named_world("wide")
    turns, ended_share = self_play(world, world.openings("dev") + world.openings("test"))
    exchanges = [exchange for turn in turns for exchange in turn]
    assert 0.06 < fmean(is_rude(exchange.response) for exchange in exchanges) < 0.16
    assert fmean(topic_of(exchange.probe) is not None for exchange in exchanges) > 0.97
    assert ended_share > 0.99
    assert 4 <= len(world.topics_found(exchanges)) < 24  # the others are too rare for 600 turns


@pytest.mark.parametrize("flag", [["--delayed"], ["--weak", "tea,soup"]])
def test_a_wide_world_is_neither_delayed_nor_of_given_topics(flag, tmp_path, capsys):
    assert main(["sandbox", "build", "--wide", *flag, "--output", str(tmp_path / "world")]) == 1
    assert "a wide world draws its own weaknesses" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


def test_it_is_shown_in_80_columns_and_its_weaknesses_where_they_are_asked_for(capsys):
    world = named_world("wide")
    assert main(["sandbox", "show", "--world", "wide"]) == 0
    shown = capsys.readouterr().out
    assert "24 topics, 10 with a condition" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["sandbox", "show", "--world", "wide", "--reveal"]) == 0
    shown = capsys.readouterr().out
    assert ", ".join(weakness.name for weakness in world.weaknesses) in " ".join(shown.split())
