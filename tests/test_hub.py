"""Pushing with the real client: what arrives, what does not, who may see it, and the message if it fails."""

import itertools
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_dpo
import test_groups
import torch
from conftest import HAS_PPO, make_gpt2, make_tokenizer
from hub_stand_in import API_KEY, HARMFUL, HOST, TOKEN, Repo, make_evaluation, make_run, serving, snapshot
from huggingface_hub import DatasetCard, ModelCard, constants
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from astra_trl import InputError
from astra_trl.hub import push, pushing

pytest_plugins = ["hub_stand_in"]  # for its fixture, the hub

MODEL = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}
PRIVATE = (TOKEN, API_KEY, HOST, "bob-builder", HARMFUL)


def arrived(repo: Repo, folder: Path) -> Path:
    """The files of a repo, written to a folder."""
    for name, data in repo.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def assert_nothing_private(hub, tmp_path):
    for secret in (*PRIVATE, str(tmp_path)):
        assert secret.encode() not in hub.everything, secret


# -- what arrives


def test_the_model_its_tokenizer_and_its_card_arrive_in_a_private_repo_and_nothing_else(tmp_path, hub):
    run = make_run(tmp_path / "my-tester")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((run / name).read_text())
        settings |= {"_name_or_path": str(tmp_path / "elsewhere" / "base"), "nested": [{"from": str(run)}]}
        (run / name).write_text(json.dumps(settings))
    before = snapshot(tmp_path)
    assert push(run) == f"{hub.url}/alice/my-tester"
    assert snapshot(tmp_path) == before
    assert list(hub.models) == ["alice/my-tester"] and not hub.datasets
    repo = hub.models["alice/my-tester"]
    assert repo.private
    assert repo.arrived == {*MODEL, "README.md"}
    assert_nothing_private(hub, tmp_path)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        sent = json.loads(repo.files[name])
        assert (sent["_name_or_path"], sent["nested"]) == ("base", [{"from": "my-tester"}])
    assert repo.files["model.safetensors"] == before["my-tester/model.safetensors"]
    assert "alice/my-tester" in repo.files["README.md"].decode()

    pushed = arrived(repo, tmp_path / "pushed")
    tester, tokenizer = AutoModelForCausalLM.from_pretrained(pushed), AutoTokenizer.from_pretrained(pushed)
    ids = tokenizer("Good morning", return_tensors="pt")
    assert torch.equal(tester(**ids).logits, make_gpt2(make_tokenizer())(**ids).logits)


def test_an_adapter_arrives_without_the_way_to_its_base(tmp_path, hub, gpt2_folder, monkeypatch):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(gpt2_folder), test_groups.LORA)
    torch.nn.init.normal_(model.base_model.model.transformer.h[0].attn.c_attn.lora_B["default"].weight)
    run = make_run(tmp_path / "adapted", model, use_peft=True, tester=str(gpt2_folder))
    push(run)
    repo = hub.models["alice/adapted"]
    assert repo.arrived == {*ADAPTER, "README.md"}
    assert json.loads(repo.files["adapter_config.json"])["base_model_name_or_path"] == "tiny-gpt2"
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.library_name == "peft" and card.data.base_model is None  # tiny-gpt2 is nothing on the Hub
    assert "PeftModel.from_pretrained(base" in card.text and str(gpt2_folder.parent) not in card.content

    monkeypatch.chdir(gpt2_folder.parent)  # where the base is found by its name
    loaded = AutoPeftModelForCausalLM.from_pretrained(arrived(repo, tmp_path / "pushed"))
    ids = make_tokenizer()("Good morning", return_tensors="pt")
    assert torch.equal(loaded(**ids).logits, model.eval()(**ids).logits)


def test_shards_arrive_with_their_index(tmp_path, hub):
    run = make_run(tmp_path / "big")
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    make_gpt2(make_tokenizer()).save_pretrained(run, max_shard_size="40KB")
    push(run, "alice/sharded")
    names = hub.models["alice/sharded"].arrived
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert "model.safetensors.index.json" in names and "model.safetensors" not in names
    pushed = arrived(hub.models["alice/sharded"], tmp_path / "pushed")
    weights = AutoModelForCausalLM.from_pretrained(pushed).state_dict()
    (tmp_path / "whole.safetensors").write_bytes(whole)
    for name, tensor in load_file(tmp_path / "whole.safetensors").items():
        assert torch.equal(weights[name], tensor)


def test_a_user_s_own_way(tmp_path):
    # In a process of its own, where HF_ENDPOINT is read as the client is imported.
    run = make_run(tmp_path / "tester")
    script = "import sys; from astra_trl.hub import push; print(push(sys.argv[1], commit_message='by hand'))"
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path), "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    with serving() as server:
        done = subprocess.run(
            [sys.executable, "-c", script, str(run)],
            env={**env, "HF_ENDPOINT": server.url},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout.strip() == f"{server.url}/alice/tester", done.stderr
    assert server.models["alice/tester"].arrived == {*MODEL, "README.md"}
    assert server.models["alice/tester"].commits == ["by hand"]
    assert_nothing_private(server, tmp_path)


def test_nothing_heavy_is_imported(tmp_path):
    script = "import sys, astra_trl.hub; print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


def test_a_checkpoint_is_pushed_with_the_settings_of_its_run_and_without_its_figures(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    push(run / "checkpoint-12")
    repo = hub.models["alice/tester"]
    assert repo.arrived == {"model.safetensors", "config.json", "generation_config.json", "README.md"}
    card = repo.files["README.md"].decode()
    assert "small-talker" in card and "model-index" not in card and "## Evaluation" not in card


def test_words_of_a_vocabulary_are_no_paths(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    run = make_run(tmp_path / "tester")
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"/root": 1000, "/home/bob": 1001}
    (run / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((run / "tokenizer_config.json").read_text()) | {"mask_token": "/tmp", "extra": "/tmp/x"}
    (run / "tokenizer_config.json").write_text(json.dumps(settings))
    push(run)
    files = hub.models["alice/tester"].files
    assert json.loads(files["tokenizer.json"]) == tokenizer
    sent = json.loads(files["tokenizer_config.json"])
    assert (sent["mask_token"], sent["extra"]) == ("/tmp", "x")


# -- who may see it


def test_a_repo_is_public_only_where_that_is_asked_for(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    push(run, private=False)
    assert not hub.models["alice/tester"].private
    hub.asked.clear()
    with pytest.raises(InputError, match=r"the model alice/tester exists and is public: push with --public .*repo_id"):
        push(run)
    assert hub.asked == ["create", "info"]
    push(run, private=False)
    push(run, "alice/other", private=None)
    assert hub.models["alice/other"].private
    push(run, "alice/other", private=False)
    assert hub.models["alice/other"].private


def test_transcripts_go_into_a_data_set_that_is_always_private(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    push(run, private=False, push_transcripts=True)
    model, data = hub.models["alice/tester"], hub.datasets["alice/tester-transcripts"]
    assert not model.private and data.private
    assert model.arrived == {*MODEL, "README.md"}
    assert data.arrived == {"training.jsonl", "evaluation.jsonl", "README.md"}
    assert "alice/tester-transcripts" in model.files["README.md"].decode()
    training, evaluation = (json.loads(data.files[f"{name}.jsonl"]) for name in ("training", "evaluation"))
    assert training == {
        **json.loads((run / "exchanges.jsonl").read_text()),
        "probe": "What is in tester/notes and ~/x?",
    }
    assert evaluation["target"] == "small-talker" and evaluation["response"] == HARMFUL
    card = DatasetCard(data.files["README.md"].decode())
    assert "not-for-all-audiences" in card.data.tags and "harmful text" in card.text
    names = {"round", "arm", "context", "probe", "response", "scores"}
    assert all(f"| `{name}` |" in card.text for name in names)
    assert card.data.configs[0] == {"config_name": "training", "data_files": "training.jsonl"}
    assert HARMFUL.encode() not in b"".join(model.files.values())
    assert all(secret.encode() not in hub.everything for secret in (TOKEN, API_KEY, HOST, str(tmp_path)))


def test_transcripts_are_not_put_where_everybody_reads_them(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    hub.datasets["alice/tester-transcripts"] = Repo(private=False)
    with pytest.raises(InputError, match="dataset alice/tester-transcripts exists and is public: choose another"):
        push(run, push_transcripts=True)
    assert not hub.datasets["alice/tester-transcripts"].files and not hub.models["alice/tester"].files
    (run / "exchanges.jsonl").unlink()
    (run / "evaluation" / "exchanges.jsonl").unlink()
    with pytest.raises(InputError, match="no transcripts: leave push_transcripts out"):
        push(run, push_transcripts=True)


def plant(file: Path, text: str) -> None:
    if file.suffix == ".safetensors":
        save_file(load_file(file), file, metadata={"format": "pt", "note": text})
    elif file.suffix == ".json":
        file.write_text(json.dumps({**json.loads(file.read_text()), "note": f"see {text}, please"}))
    else:
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize(
    ("secret", "what"),
    [
        (TOKEN, "the Hub token in use"),
        ('quo"ted-secret', "the value of the environment variable JUDGE_PASSWORD"),
        ("hf_" + "x1Y2" * 8, "what looks like a Hub token"),
        (API_KEY, "what looks like an API key"),
        ("AIza" + "Sy0-1_xY" * 4 + "abc", "what looks like a Google key"),
        ("github_pat_" + "11ABC_xyz0" * 5, "what looks like a GitHub token"),
        ("ghp_" + "a1B2c3" * 6, "what looks like a secret (GitHub Token)"),
        ("glpat-" + "a1B2c3d4e5" * 2, "what looks like a secret (GitLab Token)"),
        ("AKIA" + "ABCD2345" * 2, "what looks like a secret (AWS Access Key)"),
        ("xoxb-" + "1234567890-" * 2 + "abcDEF", "what looks like a secret (Slack Token)"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "what looks like a secret (Private Key)"),
        ("https://me:" + "hunter22@example.com/x", "what looks like a secret (Basic Auth Credentials)"),
    ],
)
def test_a_file_with_a_secret_is_not_pushed(tmp_path, hub, monkeypatch, name, secret, what):
    run = make_run(tmp_path / "tester")
    monkeypatch.setenv("JUDGE_PASSWORD", 'quo"ted-secret')
    monkeypatch.setenv("SHORT_KEY", "e")  # in every file there is
    plant(run / name, secret)
    with pytest.raises(InputError) as refusal:
        push(run)
    where = name if name == "model.safetensors" else rf"{name}, line \d+,"
    assert re.search(rf"model/{where} would hold {re.escape(what)}: remove it", str(refusal.value))
    assert secret not in str(refusal.value) and "\n" not in str(refusal.value)
    assert hub.asked == []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert not list(tmp_path.glob(".pushing-*"))


def test_a_secret_in_a_conversation_is_named_by_its_line(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    line = json.loads((run / "exchanges.jsonl").read_text())
    # What models say of keys, and words in capitals, are none.
    said = ["My password: hunter22, the API key is sk-..., token=abc, AKIA, 10.0.0.1.", "APARTMENTS", "3f2a" * 16]
    lines = [json.dumps({**line, "response": text}) + "\n" for text in said]
    (run / "exchanges.jsonl").write_text("".join(lines))
    push(run, push_transcripts=True)
    (run / "exchanges.jsonl").write_text("".join(lines) + json.dumps({**line, "probe": "ghp_" + "a1B2c3" * 6}) + "\n")
    hub.asked.clear()
    with pytest.raises(InputError, match=r"transcripts/training\.jsonl, line 4, would hold .*GitHub Token"):
        push(run, push_transcripts=True)
    assert hub.asked == []


def test_links_are_not_pushed(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    (tmp_path / "secret.txt").write_text("my diary")
    (run / "chat_template.jinja").symlink_to(tmp_path / "secret.txt")
    for folder in (run, run / "checkpoint-12"):
        with pytest.raises(InputError, match=r"chat_template\.jinja' is a link out of its folder, to .*secret\.txt'"):
            push(folder)
    assert hub.asked == []


@pytest.mark.parametrize("place", ["home", "run"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors"])
def test_a_file_with_a_path_of_this_machine_is_not_pushed(tmp_path, hub, place, name):
    run = make_run(tmp_path / "tester")
    plant(run / name, f"from {Path.home() if place == 'home' else run}/notes")
    with pytest.raises(InputError, match=f"{name}.* would hold a path of this machine"):
        push(run)
    plant(run / name, f"from {Path.home()}town" if place == "home" else f"from {run}2")  # other folders
    push(run)


def test_a_secret_in_a_setting_does_not_get_into_the_card(tmp_path, hub):
    run = make_run(tmp_path / "tester", judge_rubric=f"Does it say {TOKEN}?")
    with pytest.raises(InputError, match="README.md.* would hold the Hub token in use"):
        push(run)
    assert hub.asked == []


# -- what it is called, and what cannot be pushed


def test_names(tmp_path, hub):
    make_run(tmp_path / "one", hub_model_id="named-tester")
    with pytest.raises(
        InputError, match="the run's config.yaml names the repository named-tester: .* --repo_id named-"
    ):
        push(tmp_path / "one")
    assert hub.asked == []
    push(tmp_path / "one", "named-tester")
    push(tmp_path / "one", "alice/given")
    assert list(hub.models) == ["alice/named-tester", "alice/given"]
    with pytest.raises(InputError, match="cannot push to a name!: this is not a valid name .*: give another one as"):
        push(tmp_path / "one", "a name!")
    with pytest.raises(InputError, match="cannot push to carol/tester: the token may not write there .403: You don't"):
        push(tmp_path / "one", "carol/tester")
    push(tmp_path / "one", "alice/given", revision="try-2")
    push(tmp_path / "one", "alice/given", revision="try-2")
    assert hub.models["alice/given"].branches["try-2"] == hub.models["alice/given"].files


def test_folders_without_a_model(tmp_path, hub):
    with pytest.raises(InputError, match=r"folder '.*nowhere' does not exist: give a run's output_dir"):
        push(tmp_path / "nowhere")
    run = make_run(tmp_path / "tester")
    (run / "model.safetensors").rename(run / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"holds no model in safetensors: push its last checkpoint, '.*checkpoint-12'"
    ):
        push(run)
    (run / "model.safetensors").write_bytes(b"pickled")
    with pytest.raises(InputError, match=r"model.safetensors is not a safetensors file: save the model again"):
        push(run)
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json' is damaged .*: save the model again"):
        push(run)
    assert hub.asked == []


def test_a_folder_without_settings_keeps_the_card_that_its_trainer_wrote(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    (run / "config.yaml").unlink()
    card = f"---\ntags:\n- trl\n- astra-trl\n---\n\n# By the trainer, in {run}\n"
    (run / "README.md").write_text(card, encoding="utf-8")
    push(run)
    assert hub.models["alice/tester"].files["README.md"].decode() == card.replace(str(run), "tester")
    (run / "README.md").write_text("---\ntags:\n- other\n---\nnot ours\n", encoding="utf-8")
    push(run)
    assert "not ours" not in hub.models["alice/tester"].files["README.md"].decode()


# -- failures and their messages

FAILURES = {
    401: "the Hub does not accept the token (401: planted failure 401): log in with `hf auth login`",
    403: "the token may not write there (403: planted failure 403): log in with another one",
    404: "the Hub knows no such repository or branch (404: planted failure 404): choose another --repo_id",
    409: "another push has just changed the repository (409: planted failure 409): wait a moment",
    429: "the Hub accepts no more requests for now (429: planted failure 429): wait some minutes",
    500: "the Hub has an internal problem (500: planted failure 500): wait some minutes",
    "broken": "the connection failed",
}
EVERYWHERE = ["create", "info", "validate", "preupload", "batch", "upload", "verify", "commit"]


@pytest.mark.parametrize(
    ("endpoint", "failure"),
    # By 409 the Hub says that a repo is there already.
    [pair for pair in itertools.product(EVERYWHERE, FAILURES) if pair != ("create", 409)],
)
def test_a_failure_is_said_in_one_line_costs_nothing_and_is_mended_by_a_second_push(tmp_path, hub, endpoint, failure):
    run = make_run(tmp_path / "my tester")
    hub.failing[endpoint] = failure
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as refusal:
        push(run, "tester")
    said = str(refusal.value)
    assert FAILURES[failure] in said and "\n" not in said and TOKEN not in said
    assert said.startswith("cannot push to tester: ")
    assert said.endswith(f", then `astra-trl push '{run}' --repo_id tester`; nothing of the run is lost")
    assert snapshot(tmp_path) == before
    assert all("README.md" not in repo.files for repo in hub.models.values())
    hub.failing.clear()
    push(run, "tester")
    assert hub.models["alice/tester"].arrived == {*MODEL, "README.md"}
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("endpoint", ["preupload", "batch", "upload", "verify"])
@pytest.mark.parametrize("failure", [429, 500, "broken"])
def test_what_passes_by_itself_is_tried_again(tmp_path, hub, endpoint, failure):
    hub.failing[endpoint], hub.only_once = failure, True
    push(make_run(tmp_path / "tester"))
    assert hub.asked.count(endpoint) == 2


@pytest.mark.parametrize("endpoint", ["create", "info", "commit"])
def test_a_connection_gone_silent_is_given_up(tmp_path, hub, monkeypatch, endpoint):
    monkeypatch.setattr(pushing, "SILENCE_SECONDS", 0.3)
    hub.failing[endpoint] = "silent"
    with pytest.raises(InputError, match="cannot push to tester: the connection failed .*check the network"):
        push(make_run(tmp_path / "tester"))
    assert not hub.waited_out
    hub.failing.clear()
    push(tmp_path / "tester")
    assert pushing.get_session().timeout.read is None  # as it was


def test_no_hub_at_all(tmp_path, hub, monkeypatch):
    run = make_run(tmp_path / "tester")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="the connection failed"):
        push(run)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="HF_HUB_OFFLINE keeps this process off the network: unset it.*astra-trl push"
    ):
        push(run)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(InputError, match=r"does not accept the token .401.*`hf auth login`"):
        push(run)


def test_what_the_hub_does_not_take_of_a_card_is_said(tmp_path, hub):
    run = make_run(tmp_path / "tester")
    (run / "config.yaml").unlink()
    card = "---\ntags:\n- astra-trl\nbase_model: no model\n---\n"
    (run / "README.md").write_text(card, encoding="utf-8")
    with pytest.raises(InputError, match=r"refuses the files .400: Invalid metadata .* base_model no model is not"):
        push(run)


def test_xet_that_fails(tmp_path, hub, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.failing["xet"] = 403
    with pytest.raises(InputError, match=r"cannot push to tester: the token may not write there .403.: log in with"):
        push(make_run(tmp_path / "tester"))


# -- trainers


def make_trainer(monkeypatch, algorithm, folder, **kwargs):
    kwargs = {"num_train_epochs": 2, "save_strategy": "epoch", **kwargs}
    if algorithm in test_groups.CLASSES:
        return test_groups.make_trainer(folder, algorithm, **kwargs)
    if algorithm == "dpo":
        return test_dpo.make_trainer(folder, **kwargs)
    import test_ppo

    return test_ppo.make_trainer(folder, **kwargs)


@pytest.mark.parametrize("algorithm", ["dpo", "gfn", "grpo", "rloo", *(["ppo"] if HAS_PPO else [])])
@pytest.mark.parametrize("peft", [False, True])
def test_a_trainer_pushes_its_tester_and_nothing_else_at_any_time(tmp_path, hub, monkeypatch, algorithm, peft):
    lora = test_groups.LORA if peft else None
    folder = tmp_path / "run" / "my-tester"
    folder.parent.mkdir()
    trainer = make_trainer(
        monkeypatch, algorithm, folder, peft_config=lora, push_to_hub=True, hub_always_push=True, save_total_limit=1
    )
    assert hub.models["alice/my-tester"].private
    trainer.train()
    trainer._finish_current_push()
    repo, steps = hub.models["alice/my-tester"], trainer.state.global_step
    assert repo.commits == [f"Training in progress, step {step}" for step in (steps // 2, steps)]
    trained = repo.files["adapter_model.safetensors" if peft else "model.safetensors"]
    assert trainer.push_to_hub() == f"{hub.url}/alice/my-tester"
    assert repo.commits[2:] == ["End of training"]
    assert repo.arrived == {*(ADAPTER if peft else MODEL), "README.md"}
    assert not hub.datasets and str(tmp_path).encode() not in hub.everything
    assert (folder / "training_args.bin").exists() and (folder / "exchanges.jsonl").exists()
    assert not list(folder.rglob(".pushing*"))

    card = ModelCard(repo.files["README.md"].decode())
    assert (folder / "README.md").read_text() == card.content
    assert card.data.library_name == ("peft" if peft else "transformers")
    assert {"trl", "astra-trl", algorithm, "astprompter"} == {tag for tag in card.data.tags if "arxiv:" not in tag}
    assert "arxiv:2407.09447" in card.data.tags
    assert "\ntree_width: " in card.text and "\nlearning_rate: 0.001\n" in card.text
    assert "from Python" in card.text and "astra-trl train" not in card.text
    assert "generated_from_trainer" not in card.content

    pushed = arrived(repo, tmp_path / "pushed")
    ids = AutoTokenizer.from_pretrained(pushed)("Good morning", return_tensors="pt")
    tester = make_gpt2(make_tokenizer()) if peft else AutoModelForCausalLM.from_pretrained(pushed)
    tester = PeftModel.from_pretrained(tester, pushed) if peft else tester
    with trainer.current_tester():
        expected = trainer.sampler.system.tester.model.eval()(**ids).logits
    torch.testing.assert_close(tester(**ids).logits, expected)
    assert trained == repo.files["adapter_model.safetensors" if peft else "model.safetensors"]


def test_every_saved_model_has_our_card(tmp_path, hub, monkeypatch):
    trainer = make_trainer(monkeypatch, "dpo", tmp_path / "tester", peft_config=test_groups.LORA)
    trainer.model.config._name_or_path = "/data/models/base"  # which peft writes into cards of its own
    trainer.train()
    trainer.save_model(str(tmp_path / "elsewhere"))
    step = trainer.state.global_step
    for folder in (tmp_path / "tester", tmp_path / "tester" / f"checkpoint-{step}", tmp_path / "elsewhere"):
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert "This is a **tester**" in text and "/data/models" not in text, folder
        assert ModelCard(text).data.library_name == "peft"
    assert hub.asked == []


def test_a_trainer_s_transcripts_and_what_its_user_says_of_the_model(tmp_path, hub, monkeypatch):
    trainer = make_trainer(monkeypatch, "dpo", tmp_path / "tester", hub_model_id="alice/named", hub_private_repo=None)
    trainer.args.push_transcripts = True
    trainer.train()
    assert hub.asked == []
    trainer.push_to_hub("done", token=TOKEN, revision="final", tags="extra", license="mit", dataset_name="alice/set")
    model, data = hub.models["alice/named"], hub.datasets["alice/named-transcripts"]
    assert (model.private, data.private, model.commits) == (True, True, ["done"])
    assert data.files["training.jsonl"] == (tmp_path / "tester" / "exchanges.jsonl").read_bytes()
    card = ModelCard(model.branches["final"]["README.md"].decode())
    assert "extra" in card.data.tags and (card.data.license, card.data.datasets) == ("mit", "alice/set")
    assert "alice/named-transcripts" in card.text
    trainer.args.push_transcripts = False
    future = trainer.push_to_hub(blocking=False, private=False)
    assert future.result() == f"{hub.url}/alice/named" and hub.models["alice/named"].private
    assert {*model.branches["main"]} == {*MODEL, "README.md"}
    assert not list((tmp_path / "tester").rglob(".pushing*"))


class At(TrainerCallback):
    """Does something at events of training."""

    def __init__(self, **actions):
        for name, action in actions.items():
            setattr(self, name, lambda args, state, control, action=action, **kwargs: action(state))


def test_a_hub_that_fails_does_not_stop_training(tmp_path, hub, monkeypatch, caplog):
    fail = At(on_train_begin=lambda state: hub.failing.update(create=500))
    trainer = make_trainer(monkeypatch, "dpo", tmp_path / "tester", callbacks=[fail], push_to_hub=True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        trainer._finish_current_push()
        trainer.save_model()
    steps = trainer.state.global_step
    said = [record.getMessage() for record in caplog.records if "internal problem" in record.getMessage()]
    assert any(f"step {steps} stays unpushed: cannot push to alice/tester" in line for line in said)
    assert any("the model is saved, but cannot push" in line for line in said)
    with pytest.raises(InputError, match=r"internal problem .*`astra-trl push .*nothing of the run is lost"):
        trainer.push_to_hub()
    assert not hub.models["alice/tester"].arrived
    assert not list((tmp_path / "tester").rglob(".pushing*"))
    hub.failing.clear()
    push(tmp_path / "tester")
    assert hub.models["alice/tester"].arrived == {*MODEL, "README.md"}
    trainer.save_model()
    assert hub.models["alice/tester"].commits[1:] == ["Model save"]


def test_a_checkpoint_is_pushed_whole_though_it_is_dropped_meanwhile(tmp_path, hub, monkeypatch):
    folder, saved = tmp_path / "tester", []
    slow = At(on_train_begin=lambda state: hub.failing.update(create="slow"))

    def on_save(state):
        saved.append(sorted(folder.glob("checkpoint-*")))
        if len(saved) == 1:
            saved[0] = (saved[0][0] / "model.safetensors").read_bytes()
        else:
            assert len(saved[1]) == 1  # the first is gone, and its upload has not begun
            hub.released.set()

    trainer = make_trainer(
        monkeypatch, "dpo", folder, callbacks=[slow, At(on_save=on_save)], push_to_hub=True, save_total_limit=1
    )
    trainer.train()
    trainer._finish_current_push()
    repo = hub.models["alice/tester"]
    assert len(saved) == 2 and len(repo.commits) == 1  # the second was saved while the first was on its way
    assert repo.files["model.safetensors"] == saved[0]


def test_a_strategy_of_none_but_the_end(tmp_path, hub, monkeypatch):
    trainer = make_trainer(monkeypatch, "dpo", tmp_path / "tester", push_to_hub=True, hub_strategy="end")
    trainer.train()
    trainer._finish_current_push()
    assert hub.models["alice/tester"].commits == []


def test_what_a_trainer_refuses_at_construction(tmp_path, hub, monkeypatch):
    system, trainer_class = test_dpo.make_system(), test_dpo.ASTDPOTrainer
    sampler = test_dpo.ASTSampler(system, test_dpo.PROMPTS, 2, 2)

    def construct(**config):
        config = {"push_to_hub": True, **config}
        return trainer_class(sampler, args=test_dpo.make_config(tmp_path / "tester", **config))

    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(InputError, match=f"hub_strategy='{strategy}' would push .*: use 'every_save' or 'end'"):
            construct(hub_strategy=strategy)
        construct(hub_strategy=strategy, push_to_hub=False)
    assert hub.asked == []
    hub.failing["create"] = 401
    with pytest.raises(
        InputError, match=r"cannot make the repo tester: .*`hf auth login`.*, or train without push_to"
    ):
        construct()
    hub.failing.clear()
    hub.models["alice/tester"] = Repo(private=False)
    with pytest.raises(InputError, match="alice/tester exists and is public"):
        construct()
    construct(hub_private_repo=False)

    grpo_config, grpo_class = test_groups.CLASSES["grpo"]
    sampler = test_groups.ASTSampler(test_groups.make_system(), test_dpo.PROMPTS, 4, 2)
    config = {"per_device_train_batch_size": 8, "log_completions": True, "log_completions_hub_repo": "alice/said"}
    with pytest.raises(InputError, match="log_completions_hub_repo would publish .*push_transcripts"):
        grpo_class(sampler, args=grpo_config(str(tmp_path / "grpo"), **config))
    assert not hub.datasets


def test_figures_of_another_time_are_not_in_a_trainer_s_card(tmp_path, monkeypatch):
    trainer = make_trainer(monkeypatch, "dpo", tmp_path / "tester")
    trainer.train()
    (tmp_path / "tester" / "evaluation").mkdir()
    evaluation = make_evaluation("someone/talker")
    (tmp_path / "tester" / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    for steps, shown in ((trainer.state.global_step, True), (trainer.state.global_step + 1, False)):
        (tmp_path / "tester" / "summary.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")
        trainer.create_model_card()
        card = (tmp_path / "tester" / "README.md").read_text(encoding="utf-8")
        assert ("## Evaluation" in card) == shown == ("model-index" in card)
    (tmp_path / "tester" / "evaluation" / "evaluation.json").write_text("{", encoding="utf-8")
    (tmp_path / "tester" / "summary.json").unlink()
    trainer.create_model_card()  # training does not stop for a card
