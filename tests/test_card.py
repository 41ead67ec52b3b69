"""The model card: what it says, that the Hub's own reader reads it, that its code and its command work."""

import json
import re

import pytest
import yaml
from conftest import HAS_PPO, make_gpt2, make_tokenizer
from hub_stand_in import API_KEY, HOST, make_evaluation, make_run
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from astra_trl import InputError
from astra_trl.cli.parse_train import parse
from astra_trl.hub import model_card

TAGS = ["trl", "astra-trl", "dpo", "astprompter"]
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n\n")[2].partition("\n## ")[0]


def code(text: str, language: str) -> str:
    return text.partition(f"```{language}\n")[2].partition("\n```")[0]


def papers(card: str) -> list[str]:
    """The papers that the card links to; its metadata tags the same."""
    linked = re.findall(r"huggingface.co/papers/([\d.]+)", card)
    assert [tag for tag in ModelCard(card).data.tags if "arxiv:" in tag] == [f"arxiv:{paper}" for paper in linked]
    return linked


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]


def write_evaluation(run, **changes):
    evaluation = {
        **make_evaluation(json.loads((run / "evaluation" / "evaluation.json").read_text())["arms"][0]["target"]),
        **changes,
    }
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")


def test_metadata_is_what_the_hub_s_own_reader_reads(tmp_path):
    run = make_run(tmp_path / "my-tester", tester="someone/base", target="someone/talker")
    card = ModelCard(model_card(run, "alice/my-tester"))
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.base_model) == (
        "transformers",
        "text-generation",
        "someone/base",
    )
    assert data.tags == [*TAGS, "arxiv:2407.09447", "arxiv:2305.18290", "arxiv:2310.12036"]
    assert data.model_name == "my-tester"
    found = {(result.metric_type, result.metric_args["arm"]): result for result in data.eval_results}
    assert {name for name, _ in found} == {
        "harmful_share/harm", "harmful_share/judge", "harmful_conversations/harm",
    }  # fmt: skip
    assert len(found) == 9
    values = {arm: found["harmful_share/harm", arm].metric_value for arm in ("tester", "baseline", "openings")}
    assert values == {"tester": 0.7, "baseline": 0.1, "openings": 0.05}
    result = found["harmful_share/judge", "tester"]
    assert (result.task_type, result.dataset_type, result.dataset_split) == ("text-generation", "openings.txt", "test")
    assert result.metric_args == {"arm": "tester", "low": 0.35, "high": 0.71, "n": 300}
    assert result.dataset_args["openings_digest"] == "abc123"
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_the_evaluation_shows_intervals_and_no_figure_without_the_untrained_testers(tmp_path):
    run = make_run(tmp_path / "tester")
    said = section(model_card(run), "Evaluation")
    table = {row[0]: row[1:] for row in rows(said)}
    assert table["figure"] == ["tester", "untrained", "openings alone", "tester − untrained"]
    assert table["Harmful responses, by harm"] == [
        r"70.0% \[35.0, 71.0\]", r"10.0% \[5.0, 11.0\]", r"5.0% \[2.5, 6.0\]", r"+60.0 points \[50.0, 65.0\]",
    ]  # fmt: skip
    assert table["Reward, mean"][2] == "–" and table["Harmful responses, by judge (held out)"][0].startswith("70.0%")
    assert "at or above 0.5" in said and "95% intervals, between openings" in said
    assert "Of the 300 exchanges (tester), 0 failed, 5 got an empty response and 2 could not be scored" in said
    assert "Of the openings (openings alone), 3 were heard without the assistant's last turns, and 0 were left" in said

    assert "Rewards are without" not in said
    evaluation = make_evaluation("someone/talker")
    evaluation["settings"]["reward_left_out"] = ["cosine_novelty"]
    write_evaluation(run, **evaluation)
    assert "Rewards are without cosine\\_novelty: these terms give less" in model_card(run)

    evaluation = make_evaluation("someone/talker", arms=("tester", "openings"))
    write_evaluation(run, **evaluation)
    card = model_card(run)
    assert "No untrained tester was evaluated" in card and "70.0%" not in card and "model-index" not in card
    evaluation = make_evaluation("someone/talker")
    for figure in evaluation["figures"]:
        if (figure["arm"], figure["figure"]) == ("baseline", "reward"):
            figure["value"] = None
    write_evaluation(run, **evaluation)
    assert "Reward, mean" not in model_card(run) and "Conversations with a harmful response" in model_card(run)


def test_several_targets_have_a_table_each_and_the_run_s_own_comes_first(tmp_path):
    run = make_run(tmp_path / "tester", target="someone/talker")
    first, second = make_evaluation("other/model"), make_evaluation("someone/talker")
    both = {key: [*first[key], *second[key]] for key in ("arms", "counts", "figures", "differences")}
    write_evaluation(run, **both)
    card = ModelCard(model_card(run))
    assert re.findall(r"### Against (.*)", card.text) == ["someone/talker", "other/model"]
    assert {result.task_name for result in card.data.eval_results} == {"Finding harmful responses of someone/talker"}
    assert len(card.data.eval_results) == 9


def test_it_says_what_it_is_and_what_it_was_trained_against(tmp_path):
    run = make_run(tmp_path / "tester", tester="someone/base", target="someone/talker")
    card = model_card(run, "alice/tester", transcripts="alice/tester-transcripts")
    assert "**tester**" in card and "makes **someone/talker** misbehave" in card
    assert "[someone/base](https://huggingface.co/someone/base)" in card
    facts = dict(row for row in rows(section(card, "What it was trained against")) if len(row) == 2)
    assert (
        facts["scorer trained on"] == "harm (ClassifierScorer)" and facts["scorers held out"] == "judge (JudgeScorer)"
    )
    assert (facts["target"], facts["lowest harmful score"]) == ("someone/talker", "0.5")
    assert "- torch: 2.13.0" in section(card, "Framework versions")
    assert "private" in section(card, "Privacy") and "alice/tester-transcripts" in section(card, "Privacy")
    assert "Out of scope" in section(card, "Intended use")
    assert {"2407.09447", "2305.18290", "2310.12036"} == set(papers(card))
    assert "- [IPO](https://huggingface.co/papers/2310.12036)" in section(card, "Papers")


@pytest.mark.parametrize(
    ("algorithm", "paper"),
    [
        ("dpo", "2305.18290"),
        ("gfn", "2405.18540"),
        ("grpo", "2402.03300"),
        ("rloo", "2402.14740"),
        ("ppo", "1707.06347"),
    ],
)
def test_papers_of_algorithms(tmp_path, algorithm, paper):
    run = make_run(tmp_path / "tester", algorithm=algorithm, loss_type="sigmoid")
    assert papers(model_card(run)) == ["2407.09447", paper]
    assert f"\n- {algorithm}\n" in model_card(run)


@pytest.mark.parametrize(
    ("system", "tag", "said", "paper"),
    [
        ("HFASTSystem", "astprompter", "ASTPrompter", "2407.09447"),
        ("CRTSystem", "crt", "CRT", "2402.19464"),
        ("crt", "crt", "CRT", "2402.19464"),
        ("PerezSystem", "perez", "Perez et al.", "2202.03286"),
        ("malibu", "malibu", "MALIBU", None),
        ("MySystem", "MySystem", "MySystem", None),
    ],
)
def test_a_system_is_called_by_its_name_and_its_paper_is_cited(tmp_path, system, tag, said, paper):
    card = model_card(make_run(tmp_path / "tester", system=system, algorithm="grpo", loss_type="grpo"))
    assert f"\n- {tag}\n" in card and f"({said})." in card
    assert papers(card) == [*([paper] if paper else []), "2402.03300"]


def test_older_and_barer_folders(tmp_path):
    run = make_run(tmp_path / "tester", algorithm=None, system=None)
    card = ModelCard(model_card(run))
    assert card.data.tags[:4] == TAGS  # by summary.json and evaluation.json
    (run / "evaluation" / "evaluation.json").unlink()
    assert "## Evaluation" not in model_card(run)
    assert "| scorers held out | judge:gpt-judge |" in model_card(run)
    for name in ("config.yaml", "summary.json"):
        (run / name).unlink()
    card = ModelCard(model_card(run, known={"algorithm": "ppo", "system": "Perez", "tester": "a/b", "beta": 2}))
    assert card.data.tags == ["trl", "astra-trl", "ppo", "Perez", "arxiv:1707.06347"] and card.data.base_model == "a/b"
    assert "\nbeta: 2\n" in card.text and "astra-trl train" not in card.text
    assert ModelCard(model_card(tmp_path)).data.library_name == "transformers"


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "evaluation/evaluation.json"])
def test_damaged_files_are_named(tmp_path, name):
    run = make_run(tmp_path / "tester")
    (run / name).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=f"'{run / name}' is damaged"):
        model_card(run)


def test_no_path_address_or_key_of_this_machine_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keywords = f"keyword:{tmp_path / 'words.txt'}"
    run = make_run(
        tmp_path / "home" / "runs" / "tester",
        held_out_scorers=[keywords, "judge:/models/judge"],
        judge_rubric=f"Is it as in {tmp_path}/home/rude.md?",
    )
    card = model_card(run)
    assert "Is it as in ~/rude.md?" in card
    assert str(tmp_path) not in card and "/models" not in card
    for text in (HOST, API_KEY, "user:"):
        assert text not in card
    for text in ("base-tester", "small-talker", "openings.txt", "classifier:harm-classifier", "keyword:words.txt"):
        assert text in card
    assert "judge:judge" in card and "judge_base_url: URL" in card


NESTED = {
    "system": "crt",
    "system_kwargs": {"setting": "instruction"},
    "tester": "someone/base",
    "target": {"model": "openai:Qwen/Qwen2.5-7B", "base_url": f"http://{HOST}:8000/v1", "max_new_tokens": 64},
    "scorer": None,
    "held_out_scorers": None,
    "scorers": {
        "insults": {"type": "detoxify", "category": "insult"},
        "judge": {"type": "judge", "model": "openai:gpt-4o-mini", "base_url": f"https://{HOST}/v1"},
        "words": {"type": "keyword", "words": "/data/words.txt"},
    },
    "reward": {"harm": 1, "cosine_novelty": {"weight": 1, "embedder": "/data/models/minilm"}},
    "hub_token": "kept",
}


def test_nested_settings_come_out_whole_without_what_is_private(tmp_path):
    run = make_run(tmp_path / "tester", **NESTED)
    card = model_card(run)
    written = yaml.safe_load(code(section(card, "Training it again"), "yaml"))
    assert written["target"] == {"model": "openai:Qwen/Qwen2.5-7B", "base_url": "URL", "max_new_tokens": 64}
    assert written["system_kwargs"] == {"setting": "instruction"}
    assert written["scorers"] == {
        "insults": {"type": "detoxify", "category": "insult"},
        "judge": {"type": "judge", "model": "openai:gpt-4o-mini", "base_url": "URL"},
        "words": {"type": "keyword", "words": "words.txt"},
    }
    assert written["reward"] == {"harm": 1, "cosine_novelty": {"weight": 1, "embedder": "minilm"}}
    assert not {"hub_token", "output_dir", "run_name"} & set(written)
    assert HOST not in card and API_KEY not in card and "/data" not in card and str(tmp_path) not in card
    assert "makes **Qwen/Qwen2.5-7B** misbehave" in card and "| an API, by chat completions |" in card
    (run / "evaluation" / "evaluation.json").unlink()
    facts = dict(row for row in rows(section(model_card(run), "What it was trained against")) if len(row) == 2)
    assert facts["scorer trained on"] == "insults (detoxify)"
    assert facts["scorers held out"] == "judge (judge:openai:gpt-4o-mini), words (keyword)"


def test_a_long_configuration_is_folded(tmp_path):
    again = section(
        model_card(make_run(tmp_path / "tester", **{f"setting_{i}": i for i in range(60)})), "Training it again"
    )
    assert "<details><summary>config.yaml</summary>" in again and again.rstrip().endswith("</details>")
    assert yaml.safe_load(code(again, "yaml"))["setting_59"] == 59


def test_text_of_models_and_users_does_not_act(tmp_path):
    hostile = "a`b|c\n\n# head [x](javascript:y) <script>*z*\x1b[31m\u202e```"
    run = make_run(tmp_path / "tester", target=hostile, judge_rubric=hostile, prompts=f"{hostile}\n---\ntags: [x]")
    evaluation = make_evaluation(hostile)
    evaluation["settings"] |= {"versions": {hostile: hostile}, "scorers": ["harm", hostile], "openings": hostile}
    evaluation["figures"] += [
        {**figure, "figure": f"harmful_share/{hostile}"}
        for figure in evaluation["figures"]
        if figure["figure"] == "harmful_share/judge"
    ]
    write_evaluation(run, **evaluation)
    card = model_card(run, known={"optim": hostile})
    assert "\x1b" not in card and "\u202e" not in card
    read = ModelCard(card)
    assert read.data.tags[:4] == TAGS
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?\n\1$", "", read.text)  # of blocks of code
    assert "<script>" not in outside and "[x](java" not in outside and "\n# head" not in outside
    assert not re.search(r"(?<!\\)[`*]z|a(?<!\\)`b|b\|c", outside)
    assert {len(row) for row in rows(section(outside, "Evaluation"))} == {5}
    assert re.search(r"(?m)^`{4,}yaml$", card)


@pytest.mark.parametrize("kind", ["full", "adapter of a folder", "adapter"])
def test_its_code_loads_the_model_and_writes(tmp_path, capsys, monkeypatch, gpt2_folder, kind):
    model = make_gpt2(make_tokenizer())
    base = gpt2_folder if kind == "adapter of a folder" else "someone/base"
    if kind != "full":
        model = get_peft_model(model, LORA)
        model.peft_config["default"].base_model_name_or_path = str(base)
    run = make_run(tmp_path / "tester", model, use_peft=kind != "full")
    script = code(section(model_card(run, "alice/tester"), "Loading it"), "python")
    assert script.count('"alice/tester"') == 2
    assert ("AutoPeftModelForCausalLM" in script, "PeftModel.from" in script) == (kind == "adapter", "of a" in kind)
    script = script.replace("alice/tester", str(run))
    if kind != "full":
        settings = json.loads((run / "adapter_config.json").read_text())
        (run / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(gpt2_folder)}))
    monkeypatch.chdir(gpt2_folder.parent)
    exec(script, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("algorithm", ["dpo", "gfn", "grpo", "rloo", *(["ppo"] if HAS_PPO else [])])
def test_its_command_is_the_run_again(tmp_path, algorithm):
    given = {
        "algorithm": algorithm,
        "tester": "someone/base",
        "target": {"model": "openai:someone/talker", "max_new_tokens": 64},
        "scorers": {
            "judge": {"type": "judge", "model": "gpt-judge", "rubric": "Is it rude,\nor 'worse'?"},
            "insults": {"type": "detoxify", "category": "insult"},
            "words": {"type": "keyword", "words": ["fool", "shut up"]},
        },
        "reward": {"harm": 1, "likelihood": {"weight": 0.1}, "length": 0.5},
        "prompts": "convokit-reddit",
        "learning_rate": 3e-6,
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "tree_width": 4,
        "per_device_train_batch_size": 8,
        "temperature": 1.0,
        "seed": 7,
        "output_dir": "tester",
        "report_to": "none",
    }
    given |= (
        {"loss_type": ["ipo"]} if algorithm == "dpo" else {"beta": 0.05} if algorithm != "ppo" else {"kl_coef": 0.2}
    )
    first = _settings(parse(given, []))
    run = make_run(
        tmp_path / "tester", **{**dict.fromkeys(yaml.safe_load(_bare(tmp_path))), **first, "algorithm": algorithm}
    )
    text = section(model_card(run), "Training it again")
    assert code(text, "bash") == "astra-trl train --config config.yaml"
    file = tmp_path / "config.yaml"
    file.write_text(code(text, "yaml"), encoding="utf-8")
    assert (yaml.safe_load(file.read_text())["system"], yaml.safe_load(file.read_text())["algorithm"]) == (
        "astprompter", algorithm,
    )  # fmt: skip
    again = _settings(parse({"output_dir": "tester", "report_to": "none"}, ["--config", str(file)]))
    changed = {key: (value, again[key]) for key, value in first.items() if again[key] != value}
    assert not changed


def _bare(tmp_path):
    return (make_run(tmp_path / "bare") / "config.yaml").read_text(encoding="utf-8")


def _settings(parsed):
    args, training_args, model_args = parsed
    return json.loads(json.dumps({**training_args.to_dict(), **vars(model_args), **vars(args)}, default=str))
