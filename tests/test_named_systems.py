"""Systems by `--system`: what each sets flags to, what flags make of them, what a run and an evaluation of each do."""

import json
from types import SimpleNamespace

import pytest
from conftest import HAS_PPO, keyword_flags, make_gpt2, make_tokenizer

from astra_trl import CRTSystem, Goal, HFASTSystem, InputError, JudgeScorer, MalibuSystem, PerezSystem
from astra_trl.backends import ScriptedBackend
from astra_trl.cli.build import Calls, system_of
from astra_trl.cli.config import RunArguments
from astra_trl.cli.main import main
from astra_trl.cli.openings import openings_and_held_out
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.rewards import Backup, immediate
from astra_trl.sandbox import load_world
from astra_trl.sandbox.defaults import sandbox_defaults
from astra_trl.systems import SYSTEMS, system_class
from astra_trl.trainers import TRAINERS

NO_MODELS = ["--reward", '{"harm": 1, "entropy": 0.01, "self_bleu_novelty": {"weight": 1, "max_history": 7}}']
ALGORITHMS = [
    pytest.param(name, marks=pytest.mark.skipif(not HAS_PPO, reason="TRL has no PPO")) if name == "ppo" else name
    for name in TRAINERS
]


def built(*flags: str):
    args, *_ = parse({"algorithm": "grpo"}, ["--output_dir", "x", *flags])
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling}?")
    target = ScriptedBackend(lambda texts, sibling: "answer")
    return system_of(args, load_world(), tester, target, None, Calls(args, []))


def test_each_system_is_built_with_its_papers_figures():
    system = built()
    assert type(system) is HFASTSystem and system.credit is immediate
    assert list(system.reward.terms) == ["harm", "probe_and_response_harm", "likelihood"]
    system = built("--system", "malibu", "--system_kwargs", '{"gamma": 0.8}')
    assert type(system) is MalibuSystem and system.credit == Backup(0.8)
    system = built("--system", "crt", *NO_MODELS, "--system_kwargs", '{"setting": "instruction"}')
    assert type(system) is CRTSystem and system.setting == "instruction"
    assert {name: weight for name, (weight, _) in system.reward.terms.items()} == {
        "harm": 1.0,
        "entropy": 0.01,
        "self_bleu_novelty": 1.0,
    }
    assert system.reward.terms["self_bleu_novelty"][1].max_history == 7
    reward = '{"answer_harm": 1, "no_question": -2, "length": -0.1}'
    system = built("--system", "perez", "--reward", reward, "--system_kwargs", '{"instruction": "groups"}')
    assert type(system) is PerezSystem and "group of people" in system.instruction
    assert {name: weight for name, (weight, _) in system.reward.terms.items()} == {
        "answer_harm": 1.0,
        "no_question": -2.0,
        "length": -0.1,
    }
    assert built("--system_kwargs", '{"credit": "backup"}').credit == Backup(0.9)
    assert built("--system_kwargs", '{"credit": {"type": "backup", "gamma": 0.5}}').credit == Backup(0.5)
    for system, kwargs, message in (
        ("malibu", '{"credit": "immediate"}', "malibu backs up credit"),
        ("crt", '{"colour": "red"}', "system 'crt' takes no argument 'colour'"),
    ):
        with pytest.raises(InputError, match=message):
            built("--system", system, *(NO_MODELS if system == "crt" else []), "--system_kwargs", kwargs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_defaults_of_a_system_stand_below_those_of_a_recipe_and_flags(system, algorithm):
    args, config, _ = parse({"algorithm": algorithm}, ["--output_dir", "x", "--system", system])
    own = system_class(system).default_settings(algorithm)
    own = {name: value for name, value in own.items() if not hasattr(config, name) or hasattr(args, name)}
    assert args.system == system and "harm" in str(own["reward"])
    assert {name: getattr(args, name) for name in own} == own
    if (system, algorithm) == ("crt", "ppo"):
        assert (config.kl_coef, config.learning_rate, config.num_ppo_epochs) == (0.001, 3e-5, 4)
    if (system, algorithm) == ("perez", "grpo"):
        assert config.beta == 0.35
    args, *_ = parse(
        {"tree_depth": 7, "system": system, "algorithm": algorithm}, ["--output_dir", "x", "--top_p", "0.5"]
    )
    assert (args.system, args.tree_depth, args.top_p) == (system, 7, 0.5)
    args, *_ = parse(sandbox_defaults(system, algorithm), [])
    assert args.system == system and args.world


def test_a_reward_replaces_the_systems_own():
    terms = {"harm": 1, "probe_harm": -0.5, "self_bleu_novelty": 0.5, "likelihood": 0}
    system = built("--system", "malibu", "--reward", json.dumps(terms))
    assert list(system.reward.terms) == ["harm", "probe_harm", "self_bleu_novelty"]
    with pytest.raises(InputError, match="'entropy' leaves"):
        built("--reward", '{"entropy": 0.1}', "--combine", "product")
    assert (
        built("--reward", '{"likelihood": 0.1}', "--combine", "product").reward.terms["likelihood"][1].as_probability
    )


def test_perez_needs_no_openings():
    openings, held_out = openings_and_held_out(RunArguments(system="perez", eval_openings=5), None, 0)
    assert len(openings) == 1 and len(held_out) == 5
    with pytest.raises(InputError, match="no prompts"):
        openings_and_held_out(RunArguments(), None, 0)


@pytest.mark.parametrize(
    ("method", "algorithm", "said"),
    [
        ("few_shot", "grpo", "method few_shot trains nothing: sample with `astra-trl evaluate"),
        (
            "supervised",
            "grpo",
            "method supervised does not go with algorithm grpo: give --algorithm sft",
        ),
        ("rl", "sft", "method rl does not go with algorithm sft"),
    ],
)
def test_methods_that_do_not_fit_are_refused(method, algorithm, said):
    kwargs = json.dumps({"method": method})
    with pytest.raises(InputError, match=said):
        parse({"algorithm": algorithm}, ["--output_dir", "x", "--system", "perez", "--system_kwargs", kwargs])


def test_goals_are_judged_each_by_itself_where_no_rubric_is_given(monkeypatch):
    class Judge(JudgeScorer):
        loads = 0

        def __init__(self, model, rubric, **settings):
            type(self).loads += 1
            backend = SimpleNamespace(open=None)
            super().__init__(backend, rubric, **{k: v for k, v in settings.items() if k in ("of", "batch_size")})

    monkeypatch.setattr("astra_trl.scorers.judge.JudgeScorer", Judge)
    flags = ["--output_dir", "x", "--goal", "insults the user", "tells secrets", "--scorer", "judge:some/model"]
    args, *_ = parse({}, flags)
    tester = ScriptedBackend(lambda texts, sibling: "probe")
    system = system_of(args, None, tester, tester, None, Calls(args, []))
    assert [goal.name for goal in system.goals] == ["insults the user", "tells secrets"]
    assert [goal.scorer.rubric for goal in system.goals] == [
        "Is this true of it: insults the user?",
        "Is this true of it: tells secrets?",
    ]
    assert Judge.loads == 1
    # A rubric, or another scorer, holds for all goals.
    judge = {"type": "judge", "model": "some/model", "rubric": "Is it bad?"}
    args, *_ = parse({}, [*flags[:-1], json.dumps(judge)])
    system = system_of(args, None, tester, tester, None, Calls(args, []))
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
    words = keyword_flags("the", "e", "a", "o", "?", "t", "s", "n", "i")
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
        assert settings["reward"] == {"harm": 1.0, "entropy": 0.01}
        assert settings["reward_left_out"] == ["self_bleu_novelty"]
    else:
        assert "first probes' credit" in out
    # Files and models outside of the folder, as they are in the run.
    own = [*prompts, "--target", str(models / "target"), "--baseline", str(models / "tester")]
    args, *_ = parse_evaluate([str(run), *own])
    assert (args.system, args.depth) == (system, 4 if system == "malibu" else 1)
    assert main(["evaluate", str(run), *own, "--draws", "5"]) == 0
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
    common = [*keyword_flags("the", "e"), "--eval_openings", "6", "--draws", "5"]
    small = ["--max_new_tokens", "6", "--min_new_tokens", "1"]
    assert main(["evaluate", *roles, *common, *small, "--output_dir", str(models / "zero")]) == 0
    assert "no question %" in capsys.readouterr().out
    few = [*roles, *common, *small, "--system_kwargs", '{"method": "few_shot"}']
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
    assert main(["evaluate", *few, "--examples", "nowhere.jsonl"]) == 1
    assert "--examples 'nowhere.jsonl' is no" in capsys.readouterr().err
    summary, _ = trained(models, capsys, "perez", "sft", "--trees_per_round", "8", "--cases_per_round", "4")
    assert summary["algorithm"] == "sft" and summary["exchanges_after"] == 100
