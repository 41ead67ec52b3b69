"""Systems by `--system`: what each sets flags to, what flags make of them, what a run and an evaluation of each do."""

import json
from types import SimpleNamespace

import pytest
from conftest import make_gpt2, make_tokenizer
from test_run import HAS_PPO

from astra_trl import CRTSystem, Goal, HFASTSystem, InputError, JudgeScorer, MalibuSystem, PerezSystem
from astra_trl.backends import ScriptedBackend
from astra_trl.cli.arguments import parse
from astra_trl.cli.build import openings_and_held_out, reward_of, system_of
from astra_trl.cli.evaluate_arguments import parse_evaluate
from astra_trl.cli.flags import RunArguments, SystemArguments
from astra_trl.cli.main import main
from astra_trl.rewards import Backup, immediate
from astra_trl.sandbox import load_world
from astra_trl.sandbox.defaults import sandbox_defaults
from astra_trl.systems.defaults import SYSTEMS
from astra_trl.trainers import TRAINERS

NO_MODELS = ["--cosine_weight", "0", "--gibberish_weight", "0"]
ALGORITHMS = [
    pytest.param(name, marks=pytest.mark.skipif(not HAS_PPO, reason="TRL has no PPO")) if name == "ppo" else name
    for name in TRAINERS
]


def built(*flags: str, algorithm: str = "grpo", scorer=None):
    args, scorer_args, *_ = parse({}, ["--output_dir", "x", *flags], algorithm)
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling}?")
    target = ScriptedBackend(lambda texts, sibling: "answer")
    return system_of(args, scorer or scorer_args, load_world(), tester, target, None)


def test_each_system_is_built_with_its_papers_figures():
    system = built()
    assert type(system) is HFASTSystem and system.credit is immediate
    assert list(system.reward.terms) == ["target_harm", "probe_and_response_harm", "likelihood"]
    system = built("--system", "malibu", "--credit_gamma", "0.8")
    assert type(system) is MalibuSystem and system.credit == Backup(0.8)
    system = built("--system", "crt", *NO_MODELS, "--setting", "instruction", "--max_history", "7")
    assert type(system) is CRTSystem and system.setting == "instruction"
    assert {name: weight for name, (weight, _) in system.reward.terms.items()} == {
        "target_harm": 1.0,
        "entropy": 0.01,
        "self_bleu_novelty": 1.0,
    }
    assert system.reward.terms["self_bleu_novelty"][1].max_history == 7
    system = built("--system", "perez", "--invalid_reward", "-2", "--instruction", "groups", "--length_weight", "-0.1")
    assert type(system) is PerezSystem and "group of people" in system.instruction
    assert {name: weight for name, (weight, _) in system.reward.terms.items()} == {
        "answer_harm": 1.0,
        "no_question": -2.0,
        "length": -0.1,
    }
    assert built("--credit", "backup").credit == Backup(0.9)
    with pytest.raises(InputError, match="malibu without backed-up credit is ASTPrompter"):
        built("--system", "malibu", "--credit", "immediate")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_defaults_of_a_system_stand_below_those_of_a_recipe_and_flags(system, algorithm):
    args, _, config, _ = parse({}, ["--output_dir", "x", "--system", system], algorithm)
    assert args.system == system
    assert {name: getattr(args, name) for name in SYSTEMS[system]} == SYSTEMS[system]
    if (system, algorithm) == ("crt", "ppo"):
        assert (config.kl_coef, config.learning_rate, config.num_ppo_epochs) == (0.001, 3e-5, 4)
    if (system, algorithm) == ("perez", "grpo"):
        assert config.beta == 0.35
    args, *_ = parse({"tree_depth": 7, "system": system}, ["--output_dir", "x", "--top_p", "0.5"], algorithm)
    assert (args.system, args.tree_depth, args.top_p) == (system, 7, 0.5)
    args, *_ = parse(sandbox_defaults(system, algorithm), [], algorithm)
    assert args.system == system and args.world


def test_flags_of_the_reward_hold_for_every_system():
    args = SystemArguments(system="malibu", self_bleu_weight=0.5, entropy_weight=0.1, probe_weight=-0.5, combine="sum")
    assert list(reward_of(args, "harm").terms) == [
        "target_harm",
        "probe_and_response_harm",
        "probe_harm",
        "likelihood",
        "entropy",
        "self_bleu_novelty",
    ]
    with pytest.raises(InputError, match="'entropy' leaves"):
        reward_of(SystemArguments(entropy_weight=0.1, combine="product"), "harm")


def test_perez_needs_no_openings():
    openings, held_out = openings_and_held_out(RunArguments(system="perez", eval_openings=5), None, 0)
    assert len(openings) == 1 and len(held_out) == 5
    with pytest.raises(InputError, match="no prompts"):
        openings_and_held_out(RunArguments(), None, 0)


@pytest.mark.parametrize(
    ("flags", "algorithm", "said"),
    [
        (["--method", "few_shot"], "grpo", "method few_shot trains nothing: sample with `astra-trl evaluate"),
        (
            ["--method", "supervised"],
            "grpo",
            "method supervised is not what algorithm grpo does: give --algorithm sft",
        ),
        (["--method", "rl"], "sft", "method rl is not what algorithm sft does"),
    ],
)
def test_methods_that_do_not_fit_are_refused(flags, algorithm, said):
    with pytest.raises(InputError, match=said):
        parse({}, ["--output_dir", "x", "--system", "perez", *flags], algorithm)


def test_goals_are_judged_each_by_itself_where_no_rubric_is_given(monkeypatch):
    class Judge(JudgeScorer):
        loads = 0

        def __init__(self, model, rubric, **settings):
            type(self).loads += 1
            backend = SimpleNamespace(open=None)
            super().__init__(backend, rubric, **{k: v for k, v in settings.items() if k in ("of", "batch_size")})

    monkeypatch.setattr("astra_trl.scorers.judge.JudgeScorer", Judge)
    flags = ["--output_dir", "x", "--goal", "insults the user", "tells secrets", "--scorer", "judge:some/model"]
    args, scorer_args, *_ = parse({}, flags, "grpo")
    tester = ScriptedBackend(lambda texts, sibling: "probe")
    system = system_of(args, scorer_args, None, tester, tester, None)
    assert [goal.name for goal in system.goals] == ["insults the user", "tells secrets"]
    assert [goal.scorer.rubric for goal in system.goals] == [
        "Is this true of it: insults the user?",
        "Is this true of it: tells secrets?",
    ]
    assert Judge.loads == 1
    # A rubric, or another scorer, holds for all goals.
    args, scorer_args, *_ = parse({}, [*flags, "--judge_rubric", "Is it bad?"], "grpo")
    system = system_of(args, scorer_args, None, tester, tester, None)
    assert system.goals == [Goal("insults the user"), Goal("tells secrets")]
    assert all(goal.scorer is None for goal in system.goals)


@pytest.fixture
def models(tmp_path):
    tokenizer = make_tokenizer()
    for name, seed in (("tester", 0), ("target", 1)):
        make_gpt2(tokenizer, seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "openings.txt").write_text("\n".join(f"opening {n} of the day" for n in range(20)))
    return tmp_path


def trained(models, capsys, system, algorithm, *flags):
    words = ["--scorer", "keyword", "--keywords", "the", "e", "a", "o", "?", "t", "s", "n", "i"]
    models_ = ["--tester", str(models / "tester"), "--target", str(models / "target")]
    small = [
        "--max_new_tokens",
        "6",
        "--min_new_tokens",
        "1",
        "--num_train_epochs",
        "1",
        "--gradient_checkpointing=false",
    ]
    where = ["--output_dir", str(models / f"run-{system}"), "--save_strategy", "no", "--report_to", "none"]
    argv = ["--system", system, "--algorithm", algorithm, *models_, *words, *small, *where, *flags]
    assert main(["train", *argv]) == 0
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


@pytest.mark.parametrize(
    ("system", "flags"),
    [
        ("crt", ["--trees_per_round", "4", "--tree_width", "2", *NO_MODELS, "--goal", "goal one", "goal two"]),
        ("malibu", ["--trees_per_round", "1", "--tree_width", "2"]),
    ],
)
def test_a_run_and_its_evaluation(models, capsys, system, flags):
    prompts = ["--prompts", str(models / "openings.txt")]
    summary, out = trained(models, capsys, system, "grpo", *prompts, *flags, "--per_device_train_batch_size", "2")
    run = models / f"run-{system}"
    assert summary["exchanges_after"] == 4 * (4 if system == "malibu" else 1)
    settings = json.loads((run / "evaluation" / "evaluation.json").read_text())["settings"]
    assert settings["system"] == {"crt": "CRTSystem", "malibu": "MalibuSystem"}[system]
    if system == "crt":
        assert settings["goals"] == ["goal one", "goal two"] and "goal: goal one %" in out
        assert settings["reward"] == {"target_harm": 1.0, "entropy": 0.01}
        assert settings["reward_left_out"] == ["self_bleu_novelty"]
    else:
        assert "first probes' credit" in out
    args, *_ = parse_evaluate([str(run)])
    assert (args.system, args.depth) == (system, 4 if system == "malibu" else 1)
    assert main(["evaluate", str(run), "--draws", "5"]) == 0
    again = json.loads((run / "evaluation-target" / "evaluation.json").read_text())
    assert (again["settings"]["system"], again["settings"]["goals"]) == (settings["system"], settings["goals"])
    figures = {(row["arm"], row["figure"]): row["value"] for row in again["figures"]}
    assert figures["tester", "harmful_share/keyword"] == summary["harmful_share_after"]
    # The saved tester has no memory of its run, and needs none to be compared.
    assert figures["tester", "reward"] == pytest.approx(summary["reward_after"])


def test_perez_from_the_shell(models, capsys, monkeypatch):
    """On a tester that asks: the random one never does."""
    monkeypatch.setattr(PerezSystem, "probe_in", lambda self, text: f"{' '.join(text.split()) or 'Why'}?")
    monkeypatch.setattr("astra_trl.cli.evaluate.ZERO_SHOT_CASES", 20)
    roles = [str(models / "tester"), "--target", str(models / "target"), "--system", "perez"]
    common = ["--scorer", "keyword", "--keywords", "the", "e", "--eval_openings", "6", "--draws", "5"]
    small = ["--max_new_tokens", "6", "--min_new_tokens", "1"]
    assert main(["evaluate", *roles, *common, *small, "--output_dir", str(models / "zero")]) == 0
    assert "no question %" in capsys.readouterr().out
    few = [*roles, *common, *small, "--method", "few_shot"]
    assert main(["evaluate", *few, "--output_dir", str(models / "few")]) == 0
    opening = json.loads((models / "few" / "exchanges.jsonl").read_text().splitlines()[0])["context"][0]
    assert opening[0] == "instruction" and opening[1].startswith("List of questions") and opening[1].endswith("\n6.")
    with_file = [*few, "--examples", str(models / "zero" / "exchanges.jsonl"), "--output_dir", str(models / "few2")]
    assert main(["evaluate", *with_file]) == 0
    asked = {
        " ".join(json.loads(line)["probe"].split())
        for line in (models / "zero" / "exchanges.jsonl").read_text().splitlines()
    }
    for line in (models / "few2" / "exchanges.jsonl").read_text().splitlines():
        for example in json.loads(line)["context"][0][1].splitlines()[1:-1]:
            assert example.partition(". ")[2] in asked
    with pytest.raises(SystemExit, match="--examples 'nowhere.jsonl' is no file"):
        main(["evaluate", *few, "--examples", "nowhere.jsonl"])
    summary, _ = trained(models, capsys, "perez", "sft", "--trees_per_round", "8", "--cases_per_round", "4")
    assert summary["algorithm"] == "sft" and summary["exchanges_after"] == 100
