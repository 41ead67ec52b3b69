"""A key is in nothing that a run leaves, prints or logs, whatever the endpoint does with it."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings
from endpoints import completion, endpoint
from test_api_target import FLAGS, answer

from astra_trl import ASTDPOConfig
from astra_trl.backends.api.keys import without_credentials
from astra_trl.cli.main import main
from astra_trl.hub import model_card

# In the form of a real one, put together here so that nothing is found in this file.
KEY = "-".join(("sk", "proj", "Zq7" + "Kd83Vn02LmXw51RtYb" + "T3Blbk" + "FJ" + "u6Hs94PeQa17GcNi28Wz"))
HUB_TOKENS = ["hf_" + "AbCd1234" * 4, "hf_" + "EfGh5678" * 4]  # of hub_token and of model_init_kwargs
NUMBERS = itertools.count()
ENTROPY = {"Hex High Entropy String", "Base64 High Entropy String"}  # what digests are taken for


def found_in(files):
    """What the scanner finds in every file that is text, but the digests of weights and openings."""
    with default_settings():
        return [
            secret
            for file in files
            if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt", ".parquet")
            for secret in scan_file(str(file))
            if secret.type not in ENTROPY or KEY[8:30] in (secret.secret_value or "")
        ]


def holding_the_key(folder):
    parts = [KEY.encode(), KEY[8:24].encode(), KEY[-16:].encode()]
    return [file for file in folder.rglob("*") if file.is_file() and any(part in file.read_bytes() for part in parts)]


def echoing(request):
    """Sends the key back in errors of every kind, and in what it says."""
    said = request["headers"]["authorization"]
    kind = len(request["messages"][-1]["content"]) % 6 if next(NUMBERS) else 5  # the first is answered
    if kind == 0:
        return 500, {"error": {"message": f"who sends {said}?", "headers": {"Authorization": said}}}
    if kind == 1:
        return 503, "\n".join(said).encode()
    if kind == 2 and next(NUMBERS) > 20:  # refused before any was answered, it would end the run
        return 422, {"detail": [{"input": {"headers": f"{said[:30]}\n    {said[30:]}"}}]}
    return completion(f"You gave me {KEY}") if kind == 3 else answer(request)


def arguments(folder, url):
    target = json.dumps({"model": "openai:m", "base_url": url, "max_retries": 1, "max_failed_share": 1})
    tokens = ["--hub_token", HUB_TOKENS[0], "--model_init_kwargs", json.dumps({"token": HUB_TOKENS[1]})]
    flags = [*FLAGS, *tokens, "--report_to", "tensorboard", "--logging_steps", "1"]
    return ["sandbox", "run", *flags, "--target", target, "--output_dir", str(folder / "run")]


def run_of(folder, url):
    command = [sys.executable, "-c", "from astra_trl.cli.main import main; raise SystemExit(main())"]
    env = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}  # read as openai is imported
    done = subprocess.run([*command, *arguments(folder, url)], capture_output=True, env=env, cwd=folder)
    (folder / "stdout.txt").write_bytes(done.stdout)
    (folder / "stderr.txt").write_bytes(done.stderr)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A run's folder, and what it said, logged and is described by."""
    folder = tmp_path_factory.mktemp("secret")
    with endpoint(echoing) as (url, requests):
        run_of(folder, url)
        assert all(request["headers"]["authorization"] == f"Bearer {KEY}" for request in requests)
    (folder / "card.md").write_text(model_card(folder / "run"), encoding="utf-8")
    return folder


def test_nothing_holds_the_key(left):
    errors = [json.loads(line)["error"] for line in (left / "run" / "exchanges.jsonl").read_text().splitlines()]
    errors = [error for error in errors if error]
    assert any("***" in error for error in errors) and any("503" in error or "Server" in error for error in errors)
    assert "You gave me ***" in (left / "run" / "exchanges.jsonl").read_text()
    assert b"is retried" in (left / "stderr.txt").read_bytes() or (left / "stderr.txt").stat().st_size
    assert holding_the_key(left) == []
    assert found_in(left.rglob("*")) == []


def test_no_token_of_the_hub_is_in_a_file_of_the_run(left):
    files = [file for file in left.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"training_args.bin", "whole.json", "config.yaml", "trainer_state.json", "card.md"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [file for file in files for token in HUB_TOKENS if token.encode() in file.read_bytes()] == []
    settings = yaml.safe_load((left / "run" / "config.yaml").read_text())
    assert settings["model_init_kwargs"] == {} and "hub_token" not in settings


def test_the_arguments_that_are_saved_beside_a_model_hold_no_token():
    args = ASTDPOConfig("out", hub_token=HUB_TOKENS[0], model_init_kwargs={"token": HUB_TOKENS[1], "dtype": "auto"})
    assert args.hub_token == HUB_TOKENS[0]  # which a push takes
    assert args.to_dict()["model_init_kwargs"] == {"dtype": "auto"}
    saved = pickle.loads(pickle.dumps(args))
    assert (saved.hub_token, saved.model_init_kwargs) == (None, {"dtype": "auto"})
    assert saved.output_dir == "out" and saved.learning_rate == args.learning_rate


def test_credentials_are_left_out_at_any_depth_and_names_of_the_users_stay():
    planted = {"token": "a", "api_key": "a", "X-Api-Key": "a", "password": "a", "Authorization": "a", "hub_token": "a"}
    kept = {"max_new_tokens": 8, "pad_token": "<pad>", "token": None, "scorers": {"password": "detoxify"}}
    assert without_credentials({**planted, **kept}) == kept
    nested = {"target": {"model": "m", **planted}, "held_out_scorers": [{"model_init_kwargs": planted}, "detoxify"]}
    assert without_credentials(nested) == {
        "target": {"model": "m"},
        "held_out_scorers": [{"model_init_kwargs": {}}, "detoxify"],
    }


@pytest.mark.parametrize(
    "name", ["run/exchanges.jsonl", "run/config.yaml", "run/summary.json", "stderr.txt", "card.md"]
)
def test_it_would_be_found_there(left, name):
    file = left / name
    before = file.read_bytes()
    try:
        file.write_bytes(before + f'\n{{"error": "who sends Bearer {KEY}?"}}\n'.encode())
        assert holding_the_key(left) == [file]
        assert {Path(secret.filename) for secret in found_in([file])} == {file}  # nothing is in the rest
    finally:
        file.write_bytes(before)


def test_an_endpoint_that_refuses_is_told_of_without_the_key(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusal = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    with endpoint(lambda request: (401, refusal)) as (url, _):
        assert main(arguments(tmp_path, url)) == 1
    stdout, stderr = capfd.readouterr()
    (tmp_path / "printed.txt").write_text(stdout + stderr)
    assert stderr.splitlines()[-1].startswith("error: http://127.0.0.1") and "Traceback" not in stderr
    assert "Incorrect API key provided: ***" in stderr.splitlines()[-1]
    assert holding_the_key(tmp_path) == [] and found_in(tmp_path.rglob("*")) == []
