"""Every example runs, and does what it says, on small settings."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama

from astra_trl import DetoxifyScorer, KeywordScorer

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("own_loop", {"rounds": 1, "trees": 4}, "round 1: learned from"),
        ("kto", {"trees": 2}, "rude held-out responses:"),
    ],
)
def test_the_example_runs(name, settings, said, tmp_path, capsys):
    load(name).main(**settings, output_dir=str(tmp_path))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("custom_reward", {"rounds": 3}),
        pytest.param("custom_scorer", {"rounds": 3}, marks=pytest.mark.slow),
        pytest.param("custom_system", {"rounds": 4}, marks=pytest.mark.slow),
        pytest.param("function_target", {"rounds": 4}, marks=pytest.mark.slow),
        pytest.param("beam", {"rounds": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_tester_learns_what_it_is_rewarded_for(name, settings, tmp_path):
    before, after = load(name).main(**settings, output_dir=str(tmp_path))
    assert after > before


def test_a_beam_keeps_the_best_of_each_turn():
    beam = load("beam")
    world = beam.load_world()
    sampling = beam.SamplingParams(max_new_tokens=12)
    system = beam.HFASTSystem(
        world.tester, world.target, None, KeywordScorer(world.rude_words), sampling=sampling, device="cpu"
    )
    (tree,) = beam.BeamSampler(system, ["Hello"], 3, 3).grow(["Hello"], [0])
    assert [len(group) for group in tree.sibling_groups()] == [3, 3, 3]
    group, turns = tree.children, 0
    while group:
        best = max(group, key=lambda node: node.credit)
        assert all(not node.children for node in group if node is not best)
        assert all(len(node.exchange.context) == 1 + 2 * turns for node in group)
        group, turns = best.children, turns + 1
    assert turns == 3


def test_the_target_hears_a_passage_that_nobody_else_sees(capsys):
    retrieval = load("retrieval")
    hears = retrieval.RetrievalSystem.target_hears
    heard = hears(None, [()] * 2, ["Do you like trains?", "What about coffee?"])
    assert heard == [
        "There was a nice story about trains on the radio. Do you like trains?",
        "My neighbour gave me a book about coffee. What about coffee?",
    ]
    transcripts = retrieval.main(openings=2)
    assert len(transcripts) == 2 and not any(passage in text for text in transcripts for passage in retrieval.PASSAGES)


def test_the_second_tester_learns_from_its_own_turns(tmp_path, capsys):
    pairs = load("two_testers").main(conversations=40, output_dir=str(tmp_path))
    # The opening, the first tester's turn and the answer to it stand before each.
    assert len(pairs) and all(row["prompt"].count("\n") == 3 for row in pairs)
    assert "tester 1: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_loop_with_a_loss_written_out_learns():
    shares = load("without_trainer").main(rounds=2, trees=12)
    assert len(shares) == 3 and shares[-1] > shares[0]


def test_gpt2_with_and_without_a_trainer(tmp_path, gpt2_folder, detoxify_files):
    scorer = DetoxifyScorer(
        checkpoint=str(detoxify_files / "tiny.ckpt"), huggingface_config_path=str(detoxify_files), device="cpu"
    )
    models = {"tester": str(gpt2_folder), "target": str(gpt2_folder), "scorer": scorer}
    models["prompts"] = ["Good morning", "I love soup"]
    trainer = load("gpt2_trainer").main(**models, rounds=1, output_dir=str(tmp_path))
    assert trainer.state.global_step and (tmp_path / "model.safetensors").exists()
    rewards = load("gpt2_plain").main(**models, rounds=2, trees=1)
    assert len(rewards) == 2 * 14


def test_roles_are_loaded_apart(gpt2_folder):
    folder = str(gpt2_folder)
    system = load("devices").main(
        folder, folder, "cpu", "cpu", eight_bits=False, scorer=KeywordScorer(["a"]), openings=["soup"]
    )
    models = [role.model for role in (system.tester, system.target, system.baseline)]
    assert len({id(model) for model in models}) == 3


@pytest.mark.slow
def test_goals_have_figures_of_their_own(tmp_path):
    found = load("goals").main(rounds=4, output_dir=str(tmp_path))
    assert found.keys() == {"insults", "food"}
    assert all(share is not None for pair in found.values() for share in pair)
    assert found["food"][1] > found["food"][0]


def test_chat_models_talk(tmp_path, monkeypatch):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chat = load("chat")
    asked = []
    system = chat.HFASTSystem

    def watched(*models, **settings):
        asked.append(system(*models, **settings))
        return asked[-1]

    monkeypatch.setattr(chat, "HFASTSystem", watched)
    folder = str(tmp_path)
    transcripts = chat.main(folder, folder, "insults people", KeywordScorer(["a"]), depth=1, max_length=512)
    assert len(transcripts) == 2 and all("instruction: insults people" in text for text in transcripts)
    assert [asked[0].tester.chat, asked[0].target.chat] == [True, True]


def test_none_is_untested():
    names = re.findall(r'\("(\w+)"(?:\)|, {)', Path(__file__).read_text(encoding="utf-8"))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(names)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 80 for path in EXAMPLES.glob("*.py"))
