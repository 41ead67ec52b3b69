import json
import math

import datasets
import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from test_dpo import lines, make_config, make_system
from test_prompts import write

from astra_trl import ASTDPOTrainer, ASTSampler, HFBackend, InputError, SamplingParams, Turn, load_prompts
from astra_trl.backends import ScriptedBackend
from astra_trl.cli.parse_train import parse
from astra_trl.cli.train import run
from astra_trl.prompts.teaching import load_teaching_pairs
from astra_trl.rollout.collector import Draws, collect_trees
from astra_trl.rollout.records import preference_records
from astra_trl.rollout.run_folder import RunFolder
from astra_trl.rollout.teaching import Teaching, teaching_records
from astra_trl.sandbox.defaults import sandbox_defaults
from astra_trl.trainers import trainer_classes

PAIRS = [("Good morning,", " you idiot, shut up about the soup!"), ("The train", "soup"), ("I love", "bread")]


def make_tester(**sampling) -> HFBackend:
    tokenizer = make_tokenizer()
    return HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(**{"max_new_tokens": 8, **sampling}), max_rows=2)


def test_a_taught_pair_is_the_continuation_against_what_the_tester_says():
    tester = make_tester()
    records = teaching_records(tester, PAIRS, [0, 1, 2])
    alone = [teaching_records(tester, [pair], [seed])[0] for seed, pair in enumerate(PAIRS)]
    assert records == alone  # whatever stands beside it
    encode = tester.tokenizer.encode
    for record, (prompt, continuation) in zip(records, PAIRS, strict=True):
        assert record["prompt_ids"] == encode(prompt) + encode("\n")
        assert record["chosen_ids"] == [*encode(continuation), tester.tokenizer.eos_token_id][:8]
        assert tester.tokenizer.decode(record["rejected_ids"], skip_special_tokens=True) == record["rejected"]
        assert 0 < len(record["rejected_ids"]) <= 8
        assert (record["tree"], record["chosen_reward"], record["rejected_reward"]) == (None, None, None)
    assert len(records[0]["chosen_ids"]) == 8  # cut: no end behind it
    assert records[2]["chosen_ids"][-1] == tester.tokenizer.eos_token_id


def test_a_tester_that_says_the_continuation_itself_makes_no_record():
    tester = make_tester(temperature=0.0)
    (record,) = teaching_records(tester, [("soup", "x")], [0])
    assert teaching_records(tester, [("soup", record["rejected"])], [0]) == [None]


def test_only_a_transformers_model_can_be_taught():
    with pytest.raises(InputError, match="ScriptedBackend cannot be taught"):
        teaching_records(ScriptedBackend(lambda texts, sibling: "a"), PAIRS, [0, 1, 2])


def test_draws_are_taught_with_the_given_probability_and_belong_to_their_seed():
    teaching = Teaching(PAIRS, 0.25)
    drawn = [teaching.draw(seed) for seed in range(4000)]
    assert drawn == [teaching.draw(seed) for seed in range(4000)]
    share = sum(pair is not None for pair in drawn) / 4000
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert set(drawn) == {None, *PAIRS}
    for fraction in (0.0, 1.5, -0.1):
        with pytest.raises(InputError, match="teach_fraction must lie above 0"):
            Teaching(PAIRS, fraction)
    with pytest.raises(InputError, match="no pair to teach from"):
        Teaching([], 0.5)


def collect(sampler, teaching, **kwargs):
    wanted = kwargs.pop("wanted", 1000)
    draws = Draws(**{"seed": 3, "trees_at_a_time": 4, "max_trees": 12, **kwargs})
    return collect_trees(sampler, draws, wanted, preference_records, teaching)


def test_taught_draws_stand_in_for_trees_and_leave_the_others_as_they_are():
    sampler = ASTSampler(make_system(), [f"soup {i}" for i in range(30)], 2, 2)
    trees, taught = collect(sampler, Teaching(PAIRS, 0.5))
    assert (len(trees) + len(taught), len(trees) > 0, len(taught) > 0) == (12, True, True)
    plain, nothing = collect(sampler, None)
    assert (len(plain), nothing) == (12, [])
    grown = [[node.exchange for node in tree.nodes()] for tree in plain]
    assert all([node.exchange for node in tree.nodes()] in grown for tree in trees)
    everything, lessons = collect(sampler, Teaching(PAIRS, 1.0), wanted=6)
    assert (everything, len(lessons)) == ([], 8)  # 6 pairs are there after two times 4 draws


def test_training_takes_taught_pairs_and_records_tell_them_from_trees(tmp_path):
    sampler = ASTSampler(make_system(), ["soup", "Good morning"], 2, 2)
    args = make_config(tmp_path, teach_fraction=0.6, trees_per_round=6, num_train_epochs=2)
    trainer = ASTDPOTrainer(sampler, args, teaching_pairs=PAIRS)
    before = trainer.model.transformer.h[0].attn.c_attn.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.transformer.h[0].attn.c_attn.weight)
    figures = lines(tmp_path / "rounds.jsonl")
    assert all(line["taught_pairs"] > 0 for line in figures)
    records = RunFolder(tmp_path).read_records(1)
    taught = [record for record in records if record["tree"] is None]
    assert 0 < len(taught) < len(records) == 8
    assert {(record["prompt"], record["chosen"]) for record in taught} <= set(PAIRS)


def test_a_fraction_without_pairs_and_pairs_without_a_fraction_are_refused(tmp_path):
    for fraction, pairs, said in ((0.5, None, "0.5 and no"), (0.0, PAIRS, "0.0 and 3")):
        with pytest.raises(InputError, match=f"teach_fraction={said} teaching_pairs: give both or neither"):
            ASTDPOTrainer(
                ASTSampler(make_system(), ["soup"], 2, 1),
                make_config(tmp_path, teach_fraction=fraction),
                teaching_pairs=pairs,
            )


def test_pairs_come_from_a_file_each_once(tmp_path):
    rows = [{"prompt": p, "continuation": c, "n": 1} for p, c in [*PAIRS, PAIRS[1], ("a", " "), (" ", "b")]]
    path = write(tmp_path / "pairs.json", json.dumps(rows))
    stripped = [(prompt, continuation.strip()) for prompt, continuation in PAIRS]
    assert load_teaching_pairs(path) == stripped
    two = load_teaching_pairs(str(path), limit=2, seed=1)
    assert len(two) == 2 and two == [pair for pair in stripped if pair in two]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "text": "b"}], "has no column 'continuation': give .* one of prompt, text"),
        ([], "has no columns of prompts and continuations"),
        ([{"prompt": "a", "continuation": None}], "row 1 is not two texts"),
        ([{"prompt": "a", "continuation": "b\\u0000"}], "row 1 holds a NUL"),
        ([{"prompt": "a", "continuation": ""}], "holds no pair"),
    ],
)
def test_a_bad_file_of_pairs_is_an_input_error(tmp_path, rows, message):
    path = write(tmp_path / "pairs.json", json.dumps(rows).replace("\\\\u", "\\u"))
    with pytest.raises(InputError, match=message):
        load_teaching_pairs(path)


def rtp(monkeypatch, rows):
    """RealToxicityPrompts with rows of (prompt, continuation, the continuation's toxicity)."""

    def load_dataset(name, split):
        assert (name, split) == ("allenai/real-toxicity-prompts", "train")
        return datasets.Dataset.from_list(
            [
                {
                    "prompt": {"text": prompt, "toxicity": 0.1},
                    "continuation": {"text": continuation, "toxicity": toxicity},
                }
                for prompt, continuation, toxicity in rows
            ]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_realtoxicityprompts_are_cut_at_half_their_words(monkeypatch):
    kind = [(f"kind {number}", " words", 0.5) for number in range(16)]
    rude = [("one two three", " four five six seven", 0.9), ("a b c d e", ", f.", 0.51), ("not", " scored", None)]
    rtp(monkeypatch, [*rude, *kind])
    assert {"one two three", "a b c d e"} <= set(load_prompts("realtoxicityprompts"))
    assert load_teaching_pairs("realtoxicityprompts") == [
        ("one two three", "four five six seven"),
        ("a b c", "d e, f."),
    ]


def test_no_row_of_the_held_out_splits_is_taught(monkeypatch):
    rows = [(f"prompt number {number} that goes", f" on with {number}", 0.9) for number in range(100)]
    again = [(f"  {prompt}\n", " once more", 0.9) for prompt, *_ in rows]  # the same to whoever trims
    rtp(monkeypatch, rows + again)
    taught = {" ".join(pair) for pair in load_teaching_pairs("realtoxicityprompts")}
    for split in ("dev", "test"):
        for opening in load_prompts("realtoxicityprompts", split):
            assert not any(text.startswith(opening) for text in taught), opening
    train = set(load_prompts("realtoxicityprompts")) - set(load_prompts("realtoxicityprompts", "dev"))
    train -= set(load_prompts("realtoxicityprompts", "test"))
    assert taught == {f"{text} {more}" for text in train for more in (f"on with {text.split()[2]}", "once more")}
    assert 120 <= len(taught) <= 160


def test_held_out_openings_of_any_source_are_not_taught(tmp_path, monkeypatch, caplog):
    rtp(monkeypatch, [(f"prompt number {number} that goes", " on", 0.9) for number in range(10)])
    train = load_prompts("realtoxicityprompts")
    # As from a file with the same rows, of which other ones are held out.
    taught = load_teaching_pairs("realtoxicityprompts", held_out=[train[0], (Turn("user", train[1]),)])
    assert len(taught) == len(train) - 2
    assert not any(" ".join(pair).startswith((train[0], train[1])) for pair in taught)
    assert "2 rows are held out for evaluations, so not taught" in caplog.text
    path = write(tmp_path / "pairs.json", json.dumps([{"prompt": p, "continuation": c} for p, c in PAIRS]))
    kept = [(prompt, continuation.strip()) for prompt, continuation in PAIRS[1:]]
    assert load_teaching_pairs(path, held_out=[f" {PAIRS[0][0]} ", "another"]) == kept
    with pytest.raises(InputError, match="holds no pair .* that is not held out"):
        load_teaching_pairs(path, held_out=[prompt for prompt, _ in PAIRS])


def test_a_run_teaches_none_of_the_openings_it_is_evaluated_on(tmp_path):
    openings = [f"opening number {number}" for number in range(20)]
    prompts = write(tmp_path / "prompts.json", json.dumps([{"opening": opening} for opening in openings]))
    pairs = [{"prompt": opening, "continuation": f"you fool {number}"} for number, opening in enumerate(openings)]
    path = write(tmp_path / "pairs.json", json.dumps(pairs))
    flags = ["--prompts", str(prompts), "--teaching_pairs", str(path), "--teach_fraction", "1.0"]
    flags += ["--num_train_epochs", "1", "--pairs_per_round", "4", "--trees_per_round", "40", "--eval_openings", "4"]
    flags += ["--max_trees_per_round", "40", "--output_dir", str(tmp_path / "run"), "--save_strategy", "no"]
    flags += ["--disable_tqdm", "true", "--eval_strategy", "epoch"]
    config, trainer = trainer_classes("dpo")
    seen = []

    class Watched(trainer):
        def __init__(self, *args, teaching_pairs, eval_dataset, **kwargs):
            seen.append(({prompt for prompt, _ in teaching_pairs}, set(eval_dataset)))
            super().__init__(*args, teaching_pairs=teaching_pairs, eval_dataset=eval_dataset, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("astra_trl.cli.train.trainer_classes", lambda algorithm: (config, Watched))
        run(*parse(sandbox_defaults("astprompter", "dpo"), flags))
    ((taught, dev),) = seen
    held_out = {line["opening"][0][1] for line in lines(tmp_path / "run" / "evaluation" / "exchanges.jsonl")}
    assert len(held_out) == 4 and len(dev) == 3
    assert taught == set(openings) - held_out - dev
