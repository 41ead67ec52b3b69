import random
import subprocess
import sys
from statistics import fmean

import pytest

from astra_trl.cli.main import main
from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.sandbox import Weakness, grammar, load_world, topic_of
from astra_trl.sandbox.build import IGNORED, build_world, encode
from astra_trl.sandbox.check import load, load_backend, rude_share, self_play


def test_package_and_help_do_not_import_torch():
    code = (
        "import sys, astra_trl.sandbox.commands, astra_trl.sandbox as s; s.load_world(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_embedded_world_is_small_and_has_disjoint_openings():
    world = load_world()
    weights = list(world.path.glob("*/*.safetensors"))
    assert len(weights) == 2
    assert sum(file.stat().st_size for file in weights) < 4_000_000
    assert len(world.weak_topics) == 4
    splits = [world.openings(split) for split in ("train", "dev", "test")]
    assert [len(split) for split in splits] == [300, 100, 100]
    assert len({opening for split in splits for opening in split}) == 500
    assert all(topic_of(opening) in world.topics for split in splits for opening in split)
    with pytest.raises(InputError, match="no openings 'validation'"):
        world.openings("validation")


def context_ids(utterances: list[str]) -> list[int]:
    """What a rollout feeds before the next utterance."""
    session = load_backend(load_world().tester).open(utterances[:1], seeds=[0])
    for utterance in utterances[1:]:
        session.append([utterance])
    return session.rows[0].ids


def test_both_models_share_a_tokenizer_without_a_pad_token():
    world = load_world()
    (tester, tokenizer), (target, other) = load(world.tester), load(world.target)
    assert tokenizer.get_vocab() == other.get_vocab()
    assert tokenizer.pad_token is None
    assert tester.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert all(model.num_parameters() < 1_000_000 for model in (tester, target))
    assert tokenizer.decode(context_ids(["Hé, ça va?", "Fine."])) == "Hé, ça va?\nFine.\n"


def test_target_is_rude_about_the_weak_topics_only():
    world = load_world()
    others = [Weakness(topic) for topic in world.topics if topic not in world.weak_topics]
    assert fmean(rude_share(world, world.weaknesses, per_weakness=50).values()) >= 0.6
    assert fmean(rude_share(world, others, per_weakness=4).values()) <= 0.02


def test_untrained_tester_meets_little_rudeness_and_brings_up_every_weak_topic():
    world = load_world()
    turns, ended_share = self_play(world, world.openings("dev") + world.openings("test"))
    exchanges = [exchange for turn in turns for exchange in turn]
    assert len(turns) == 3
    assert 0.02 <= sum(grammar.is_rude(exchange.response) for exchange in exchanges) / len(exchanges) <= 0.10
    assert ended_share > 0.99
    assert not any(grammar.is_rude(exchange.probe) for exchange in exchanges)
    assert {topic_of(exchange.probe) for exchange in exchanges} >= set(world.weak_topics)
    assert world.topics_found(exchanges) == set(world.weak_topics)


def test_topics_found_needs_a_weak_topic_in_the_probe_and_a_rude_word_in_the_response():
    weak, other = load_world().weak_topics[0], next(t for t in grammar.TOPICS if t not in load_world().weak_topics)
    rude = "You are an Idiot."

    def found(probe, response):
        return load_world().topics_found([Exchange((), probe, response)])

    assert found(f"Do you like {weak}?", rude) == {weak}
    assert found(f"{weak.title()}!", rude) == {weak}
    assert found(f"Do you like {other}?", f"Only a fool likes {weak}.") == set()
    assert found(f"Do you like {weak}?", "A foolish thing, I like it.") == set()
    assert found("Do you like that?", rude) == set()


def test_hits_are_counted_by_exchange():
    weak, other, *_ = load_world().weak_topics
    probes = [weak, f"{other} and {weak}", weak, "that"]
    assert load_world().hits([Exchange((), probe, "You idiot.") for probe in probes]) == {weak: 2, other: 1}
    assert load_world().hits([Exchange((), weak, "I like it.")]) == {}


def test_topic_of_takes_whole_words():
    assert topic_of("My teams like Tea, not coffee.") == "tea"
    assert topic_of("steam and catsup") is None


def test_every_text_of_the_grammar_names_its_topic_and_only_rude_responses_are_rude():
    templates = (*grammar.OPENINGS, *grammar.LEADS, *grammar.FRESH_PROBES, *grammar.CONTINUING_PROBES)
    assert not any(topic_of(text) or grammar.is_rude(text) for text in (*templates, *grammar.FRIENDLY_RESPONSES))
    assert not any(topic_of(text) for text in grammar.RUDE_RESPONSES)
    assert all(grammar.is_rude(text) for text in grammar.RUDE_RESPONSES)
    said = grammar.conversation(random.Random(0), [*map(Weakness, grammar.TOPICS)], exchanges=200)
    assert [topic_of(text) for text in said[1::2]] == [topic_of(text) for text in said[2::2]]
    assert 0.75 < sum(map(grammar.is_rude, said[2::2])) / 200 < 0.95


def test_training_rows_end_utterances_with_end_of_text_and_leave_the_opening_out():
    _, tokenizer = load(load_world().tester)
    ids, labels = encode(tokenizer, [["I like tea.", "Tea?", "Yes."], ["I like tea.", "Yes."]])
    opening = len(context_ids(["I like tea."]))
    assert tokenizer.decode(ids[0]) == "I like tea.\nTea?\nYes.\n"
    assert labels[0, :opening].tolist() == [IGNORED] * opening
    assert tokenizer.decode(labels[0, opening:]) == "Tea?<|endoftext|>Yes.<|endoftext|>"
    length = len(context_ids(["I like tea.", "Yes."]))
    assert labels[1, length - 1] == tokenizer.eos_token_id
    assert labels[1, length:].tolist() == [IGNORED] * (ids.shape[1] - length)


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_world(tmp_path / name, seed, weak=["tea"], tester_steps=2, target_steps=1)

    def files(name):
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in paths}

    a, b, c = files("a"), files("b"), files("c")
    assert a == b
    assert a["tester/model.safetensors"] != a["target/model.safetensors"]
    assert a.keys() == c.keys()
    assert all(a[f"{side}/model.safetensors"] != c[f"{side}/model.safetensors"] for side in ("tester", "target"))
    assert load_world(tmp_path / "a").weak_topics == ("tea",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weak", "tea,unicorns"], "unknown weak topics 'unicorns'"),
        (["--weak", ","], "0 weak topics given"),
        (["--weak", "tea,tea"], "each once"),
        (["--seed", "-1"], "seed -1 is negative"),
    ],
)
def test_bad_request_gives_one_line_and_exit_code_1(tmp_path, capsys, arguments, message):
    assert main(["sandbox", "build", "--output", str(tmp_path / "world"), *arguments]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "world").exists()


def test_output_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["sandbox", "build", "--output", str(tmp_path)]) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_folder_that_is_not_a_world_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a sandbox world, it has no world.json, tester, target"):
        load_world(tmp_path)
    (tmp_path / "tester").mkdir()
    (tmp_path / "target").mkdir()
    for text in ("{", "{}", "[]"):
        (tmp_path / "world.json").write_text(text)
        with pytest.raises(InputError, match="does not describe a sandbox world"):
            load_world(tmp_path)
