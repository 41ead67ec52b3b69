"""The recipes from the outside: one line for bad input, and what a whole run prints and writes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import HAS_PPO, keyword_flags, make_llama, make_tokenizer
from stand_ins import save_classifier

from astra_trl import DetoxifyScorer, Evaluation, Exchange
from astra_trl.cli.parse_train import parse
from astra_trl.cli.recipe import main
from astra_trl.evaluation.rarefaction import evenness
from astra_trl.report import markdown_report, write_report
from astra_trl.sandbox import is_rude, load_world, topic_of

RECIPES = Path(__file__).parent.parent / "recipes"
FLAGS = ["--num_train_epochs", "2", "--pairs_per_round", "8", "--tree_width", "2", "--tree_depth", "2"]
FLAGS += ["--eval_openings", "4", "--learning_rate", "1e-3", "--gradient_checkpointing", "false"]
FLAGS += ["--dataloader_pin_memory", "false", "--save_strategy", "no", "--max_new_tokens", "8"]


def recipe_defaults(name: str) -> dict:
    namespace: dict = {"__name__": name}
    exec((RECIPES / f"{name}.py").read_text(encoding="utf-8"), namespace)
    return namespace["DEFAULTS"]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"Good morning {i}, what did you cook last night?" for i in range(30)))
    return str(file)


@pytest.fixture
def arguments(gpt2_folder, prompts, tmp_path):
    roles = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", prompts]
    words = [*keyword_flags("the", "a", "e")]
    return [*roles, *words, "--output_dir", str(tmp_path / "run"), *FLAGS]


RECIPE_NAMES = sorted(p.stem for p in RECIPES.glob("*.py") if HAS_PPO or not p.stem.startswith(("ppo", "crt")))


def algorithm_of(name: str) -> str:
    first = name.partition("_")[0]
    return {"crt": "ppo", "malibu": "dpo", "perez": "grpo"}.get(first, first)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_holds_only_flags_that_exist(name):
    args, training_args, _ = parse(recipe_defaults(name), [])
    assert args.algorithm == algorithm_of(name)
    assert training_args.output_dir == f"runs/{name}"
    assert args.tree_width >= 2


OWN_FLAGS = {
    "dpo": ("--teach_fraction", "--beta", "--pairs_per_round", "--loss_type"),
    "grpo": ("--groups_per_round", "--beta", "--scale_rewards", "--loss_type", "--num_iterations"),
    "gfn": ("--groups_per_round", "--beta", "--replay_share", "--replay_size"),
    "rloo": ("--groups_per_round", "--beta", "--normalize_advantages"),
    "ppo": ("--contexts_per_round", "--kl_coef", "--num_ppo_epochs", "--cliprange", "--model_init_kwargs"),
}


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_help_lists_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(recipe_defaults(name), ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    shared = ("--tester", "--held_out_scorers", "--reward", "--temperature", "--system_kwargs", "--lora_r")
    for flag in (*shared, *OWN_FLAGS[algorithm_of(name)]):
        assert flag in shown
    assert "30% of what is free" in " ".join(shown.split())


def test_a_run_on_the_sandbox_counts_hits_of_each_weak_topic(tmp_path, capsys):
    flags = ["--num_train_epochs", "1", "--pairs_per_round", "2", "--trees_per_round", "1", "--tree_width", "2"]
    flags += ["--eval_openings", "40", "--save_strategy", "no", "--output_dir", str(tmp_path / "run")]
    main(recipe_defaults("dpo_sandbox"), flags)
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    world = load_world()
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "evaluation" / "exchanges.jsonl").read_text().splitlines()
    ]
    heard = [(line["probe"], line["response"]) for line in lines if line["arm"] == "tester"]
    topics = [topic_of(probe) for probe, response in heard if is_rude(response)]
    hits = Counter(topic for topic in topics if topic in world.weak_topics)
    assert hits and summary["hits"] == hits and summary["topics_found"] == len(hits)
    assert summary["evenness"] == pytest.approx(evenness(hits, len(world.weak_topics)))
    assert f"weak topics found: {len(hits)} of 4 in {hits.total()} hits: " in out


@pytest.mark.parametrize("algorithm", ["gfn", "grpo", "rloo", "ppo"] if HAS_PPO else ["gfn", "grpo", "rloo"])
def test_a_whole_run_of_the_other_algorithms(arguments, algorithm, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [*changed(arguments, per_device_train_batch_size="4", temperature="0.9"), "--disable_tqdm", "false"]
    at = flags.index("--pairs_per_round")
    main({"algorithm": algorithm}, [*flags[:at], *flags[at + 2 :]])
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert (summary["algorithm"], summary["rounds"]) == (algorithm, 2)
    assert {"harmful_share_before", "harmful_share_after"} <= set(summary)
    assert "held-out openings" in printed.out and "untrained" in printed.out and "difference" in printed.out
    unit = "contexts" if algorithm == "ppo" else "groups"
    assert any(line.split()[:1] == ["round"] and unit in line for line in printed.out.splitlines())
    assert (folder / "model.safetensors").exists()
    assert (folder / "exchanges.jsonl").stat().st_size and (folder / "records" / "round-00002.parquet").exists()
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["temperature"] == 0.9
    again = parse({}, ["--config", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert (again[0].temperature, again[1].learning_rate) == (0.9, 1e-3)


def test_a_run_is_resumed_by_its_flag(arguments, tmp_path, capsys):
    flags = ["--groups_per_round", "4", "--per_device_train_batch_size", "4", "--save_strategy", "epoch"]
    at = arguments.index("--pairs_per_round")
    arguments = [*arguments[:at], *arguments[at + 2 :], *flags]
    main({"algorithm": "grpo"}, arguments)
    main({"algorithm": "grpo"}, changed(arguments, resume_from_checkpoint="true", num_train_epochs="3"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"] == 3


def test_backed_up_credit_and_teaching_are_told_apart_by_algorithm(arguments, tmp_path, capsys):
    credit = {"credit": {"type": "backup", "gamma": 0.5}}
    main({}, changed(arguments, system_kwargs=json.dumps(credit)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "exchanges.jsonl").read_text().splitlines()]
    assert any(line["credit"] > line["reward"] for line in lines if line["depth"] == 1)
    assert all(line["credit"] == line["reward"] for line in lines if line["depth"] == 2)
    grpo = [*arguments[: arguments.index("--pairs_per_round")], *arguments[arguments.index("--pairs_per_round") + 2 :]]
    grpo = changed(grpo, teaching_pairs="realtoxicityprompts", output_dir=str(tmp_path / "other"))
    with pytest.raises(SystemExit, match="teaching_pairs has no effect with --algorithm grpo"):
        main({"algorithm": "grpo"}, grpo)


@pytest.mark.skipif(HAS_PPO, reason="this TRL has PPOTrainer")
def test_the_ppo_recipe_says_in_one_line_that_trl_has_none():
    with pytest.raises(SystemExit, match=r"^error: TRL removed its PPOTrainer in 1.13: .*astra-trl\[ppo\].*GRPO"):
        main({"algorithm": "ppo"}, [])


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(SystemExit, match="unknown algorithm 'sac': choose one of dpo, gfn, grpo, ppo, rloo, sft"):
        main({"algorithm": "sac"}, [])


def test_flags_win_over_yaml_and_yaml_over_the_recipe(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("beta: 0.5\ntree_depth: 5\n")
    args, training_args, _ = parse(
        {"beta": 0.3, "tree_depth": 4, "tree_width": 6}, ["--config", str(config), "--tree_depth", "2"]
    )
    assert (training_args.beta, args.tree_depth, args.tree_width) == (0.5, 2, 6)


def test_a_whole_run(arguments, tmp_path, capsys):
    main({}, [*arguments, "--model_init_kwargs", '{"low_cpu_mem_usage": true}'])
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    for key in ("harmful_share", "reward", "probe_logprob_per_token"):
        assert {f"{key}_before", f"{key}_after"} <= set(summary)
    assert len(summary["harmful_share_by_turn_after"]) == 2
    assert (summary["rounds"], summary["steps"]) == (2, 4)
    assert summary["seconds"] > 0
    assert (folder / "model.safetensors").exists()
    assert (folder / "exchanges.jsonl").exists()
    shown = out.splitlines()[:-1]
    assert max(map(len, shown)) <= 80 + len(str(folder))
    assert sum(line.startswith(" opening: ") for line in shown) == 6  # three before and three after
    assert any("turn 2" in line for line in shown)

    evaluation = Evaluation.read(folder / "evaluation" / "evaluation.json")
    assert evaluation.headline("baseline")["harmful_share"] == summary["harmful_share_before"]
    assert evaluation.headline("tester")["harmful_share"] == summary["harmful_share_after"]
    share = f"{summary['harmful_share_after']:.1%}"
    assert share in markdown_report([folder]) and f"Harmful in {share} of responses" in markdown_report([folder])
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Good morning" in page and "Log-ratio" in page

    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["tree_width"] == 2
    assert settings["model_init_kwargs"] == {"low_cpu_mem_usage": True}
    again = parse({}, ["--config", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again[1].learning_rate == 1e-3
    assert again[0].scorer == {"type": "keyword", "words": ["the", "a", "e"]}


def test_peft_run_saves_an_adapter_that_loads(arguments, tmp_path, capsys):
    lora = ["--use_peft", "true", "--lora_target_modules", "c_attn", "c_proj", "--lora_r", "4"]
    main({}, [*arguments, *lora])
    from transformers import AutoModelForCausalLM

    assert (tmp_path / "run" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def changed(arguments: list[str], **flags: str) -> list[str]:
    return [*arguments, *(part for name, value in flags.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tester": "no/such-tester"}, "tester 'no/such-tester' could not be loaded"),
        ({"prompts": "missing.txt"}, "missing.txt"),
        ({"prompts": "EMPTY"}, "EMPTY"),
        ({"tree_width": "1"}, "tree_width=1 gives none"),
        ({"tree_depth": "0"}, "tree_depth must be at least 1"),
        ({"eval_openings": "0"}, "eval_openings must be at least 1"),
        ({"temperature": "-1"}, "temperature must be 0"),
        ({"config": "missing.yaml"}, "missing.yaml"),
        ({"config": "UNKNOWN_KEY"}, "no_such_key"),
        ({"config": "NO_YAML"}, "error: "),
        ({"resume_from_checkpoint": "missing"}, "'missing' is not a folder"),
        ({"scorer": "nothing"}, "unknown scorer 'nothing': choose one of classifier, detoxify"),
        ({"world": "missing"}, "--scorer has no effect with --world"),
        ({"scorer": '{"type": "detoxify", "checkpoint": "missing.ckpt"}'}, "could not load missing.ckpt"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(arguments, tmp_path, flags, message, monkeypatch):
    (tmp_path / "EMPTY.txt").write_text("\n")
    (tmp_path / "UNKNOWN_KEY").write_text("no_such_key: 1\n")
    (tmp_path / "NO_YAML").write_text("a: [1\n: :")
    monkeypatch.chdir(tmp_path)
    flags = {name: "EMPTY.txt" if value == "EMPTY" else value for name, value in flags.items()}
    with pytest.raises(SystemExit) as stopped:
        main({}, changed(arguments, **flags))
    line = str(stopped.value)
    assert line.startswith("error: ")
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_missing_roles_and_prompts_are_asked_for(arguments, gpt2_folder, tmp_path):
    output = ["--output_dir", str(tmp_path / "run")]
    for argv, message in (
        (["--prompts", "sandbox", *output], "no tester"),
        (["--world", "missing", *output], "'missing' is not a sandbox world"),
        (["--prompts", "sandbox", "--tester", str(gpt2_folder), *output], "no target"),
        (["--tester", str(gpt2_folder), "--target", str(gpt2_folder), *output], "no prompts"),
    ):
        with pytest.raises(SystemExit, match=message):
            main({}, argv)


def test_an_output_folder_with_another_run_is_refused(arguments, capsys):
    main({}, arguments)
    with pytest.raises(SystemExit, match="holds another run: choose another output_dir"):
        main({}, arguments)


def test_held_out_openings_are_none_that_are_trained_on(prompts):
    from astra_trl.cli.openings import openings_and_held_out

    args, *_ = parse({}, ["--prompts", prompts, "--eval_openings", "5"])
    train, held_out = openings_and_held_out(args, None, seed=0)
    assert (len(train), len(held_out)) == (25, 5)
    assert not set(train) & set(held_out)


@pytest.mark.slow
def test_a_recipe_as_a_process_prints_no_traceback(tmp_path):
    command = [sys.executable, str(RECIPES / "dpo_sandbox.py"), "--beta", "high", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


SMALL = ["--num_train_epochs", "2", "--trees_per_round", "4", "--eval_openings", "4"]
SMALL += ["--per_device_train_batch_size", "4", "--save_strategy", "no", "--warmup_steps", "0"]


def detoxify_flags(files):
    spec = {"type": "detoxify", "checkpoint": str(files / "tiny.ckpt"), "huggingface_config_path": str(files)}
    return ["--scorer", json.dumps(spec)]


def classifier_flags(folder):
    return ["--held_out_scorers", json.dumps({"type": "classifier", "model": str(folder), "labels": ["hate"]})]


def run_recipe(name, arguments, tmp_path, capsys):
    """Runs a recipe with flags alone; its summary, what it printed, and its exchanges."""
    algorithm = algorithm_of(name)
    size = {
        "dpo": ("--pairs_per_round", "8"),
        "grpo": ("--trees_per_round", "1", "--groups_per_round", "16"),
        "ppo": ("--contexts_per_round", "16"),
    }[algorithm]
    main(recipe_defaults(name), [*arguments, *SMALL, *size, "--output_dir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    exchanges = (tmp_path / "run" / "exchanges.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(out.splitlines()[-1]), out, [json.loads(line) for line in exchanges]


def test_the_gpt2_recipe_runs_on_stand_ins(gpt2_folder, detoxify_files, prompts, tmp_path, capsys):
    classifier = save_classifier(tmp_path / "classifier", ["nothate", "hate"])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"The train {i}", "continuation": "soup"}) for i in range(9)))
    flags = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", prompts]
    flags += [*detoxify_flags(detoxify_files), "--teaching_pairs", str(pairs)]
    flags += [*classifier_flags(classifier)]
    summary, out, exchanges = run_recipe("dpo_gpt2", flags, tmp_path, capsys)
    assert "  by classifier %" in out and "Trained on detoxify; other scorers are held out." in " ".join(out.split())
    for when in ("before", "after"):
        assert set(summary[f"harmful_share_by_scorer_{when}"]) == {"detoxify", "classifier"}
        assert summary[f"unscored_by_scorer_{when}"] == {"detoxify": 0, "classifier": 0}
    assert set(exchanges[0]["scores"]) == {"detoxify", "detoxify_probe_and_response"}
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert sum(line["taught_pairs"] for line in rounds) > 0
    scorer = DetoxifyScorer(checkpoint=detoxify_files / "tiny.ckpt", huggingface_config_path=detoxify_files)
    said = exchanges[0]
    expected = scorer([Exchange((), said["probe"], said["response"])])[0]
    assert said["terms"]["harm"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not HAS_PPO, reason="TRL has no PPOTrainer from 1.13 on")
def test_the_gpt2_recipe_of_ppo_runs_on_stand_ins(gpt2_folder, detoxify_files, prompts, tmp_path, capsys):
    classifier = save_classifier(tmp_path / "classifier", ["nothate", "hate"])
    flags = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", prompts]
    flags += [*detoxify_flags(detoxify_files), *classifier_flags(classifier)]
    summary, out, exchanges = run_recipe("ppo_gpt2", flags, tmp_path, capsys)
    assert "  by classifier %" in out and "Trained on detoxify; other scorers are held out." in " ".join(out.split())
    assert (summary["algorithm"], len(exchanges)) == ("ppo", 32)
    assert set(exchanges[0]["scores"]) == {"detoxify", "detoxify_probe_and_response"}


@pytest.mark.parametrize("name", ["dpo_llama3", "grpo_llama3"])
def test_the_llama3_recipe_runs_on_stand_ins(name, detoxify_files, guard_folder, prompts, tmp_path, capsys):
    tokenizer = make_tokenizer(bos=True)
    make_llama(tokenizer).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    flags = ["--tester", str(tmp_path / "llama"), "--target", str(tmp_path / "llama"), "--prompts", prompts]
    flags += [*detoxify_flags(detoxify_files), "--held_out_scorers", f"llama_guard:{guard_folder}"]
    summary, out, exchanges = run_recipe(name, flags, tmp_path, capsys)
    assert "  by llama_guard %" in out
    assert summary["harmful_share_by_scorer_after"]["llama_guard"] is not None
    assert set(exchanges[0]["scores"]) == {"detoxify", "detoxify_probe_and_response"}
    assert (tmp_path / "run" / "adapter_config.json").exists()


def test_llama_guard_can_be_trained_on_and_terms_are_chosen_by_flags(
    gpt2_folder, guard_folder, prompts, tmp_path, capsys
):
    flags = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", prompts]
    flags += ["--scorer", f"llama_guard:{guard_folder}"]
    flags += ["--teach_fraction", "0", "--held_out_scorers", '{"type": "keyword", "words": ["soup"]}']
    reward = {"harm": 1, "probe_and_response_harm": 0.5, "probe_harm": -0.5, "likelihood": 0.1, "non_repeating": 0.1}
    flags += ["--combine", "product", "--reward", json.dumps(reward)]
    _, _, exchanges = run_recipe("dpo_gpt2", flags, tmp_path, capsys)
    line = exchanges[0]
    terms = {"harm", "probe_and_response_harm", "probe_harm", "likelihood", "non_repeating"}
    assert set(line["terms"]) == terms
    weights = {"probe_and_response_harm": 0.5, "likelihood": 0.1, "non_repeating": 0.1, "harm": 1.0}
    reward = (1 - line["terms"]["probe_harm"]) ** 0.5
    for name, weight in weights.items():
        reward *= line["terms"][name] ** weight
    assert line["reward"] == pytest.approx(reward)
