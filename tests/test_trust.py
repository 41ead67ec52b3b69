"""The folder of a run and the file of `--config`: what they ask for that only the user may allow."""

import json
import os
import re
import shlex

import pytest
import yaml

from astra_trl import InputError
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse

EVIL = "http://evil.example/v1"
ASKS = "asks for files, addresses or code outside of its folder: if you trust them, repeat them: "
SECRETS = [f"the password of machine {number} is soup" for number in range(30)]


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def secret(tmp_path):
    """A private file, which must not be read because the folder of another user names it."""
    file = tmp_path / "secret notes.txt"
    file.write_text("\n".join(SECRETS))
    return file


def folder_with(tmp_path, **settings):
    folder = tmp_path / "theirs"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"tree_depth": 2, "target": "some/target", **settings}, sort_keys=False)
    )
    return folder


def asked_for(folder, *argv):
    """The flags that the refusal of an evaluation says to repeat."""
    with pytest.raises(InputError) as refused:
        parse_evaluate([str(folder), *argv])
    said = str(refused.value)
    assert said.startswith(f"'{folder}/config.yaml' {ASKS}"), said
    return shlex.split(said.partition(ASKS)[2])


# -- the folder of a run


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"prompts": "{file}"}, ["--prompts", "{file}"]),
        ({"prompts": "sandbox", "eval_prompts": "{file}"}, ["--prompts", "{file}"]),
        ({"target": "{folder}"}, ["--target", "{folder}"]),
        ({"target": {"model": "{folder}"}}, ["--target", '{"model": "{folder}"}']),
        ({"target": '{"model": "{folder}"}'}, ["--target", '{"model": "{folder}"}']),
        ({"target": {"model": "openai:m", "base_url": EVIL}}, ["--target", '{"model": "openai:m", "base_url": "%s"}']),
        (
            {"target": '{"model": "openai:m", "base_url": "%s"}'},
            ["--target", '{"model": "openai:m", "base_url": "%s"}'],
        ),
        ({"baseline": "{folder}"}, ["--baseline", "{folder}"]),
        ({"tester": "{folder}"}, ["--baseline", "{folder}"]),
        ({"world": "{folder}"}, ["--world", "{folder}"]),
        ({"scorer": "keyword:{file}"}, ["--scorer", "keyword:{file}"]),
        ({"scorer": {"type": "keyword", "words": "{file}"}}, ["--scorer", '{"type": "keyword", "words": "{file}"}']),
        ({"scorers": {"a": "overlap:{file}"}}, ["--scorers", '{"a": "overlap:{file}"}']),
        ({"scorer": {"type": "judge", "model": "{folder}"}}, ["--scorer", '{"type": "judge", "model": "{folder}"}']),
        (
            {"held_out_scorers": ["detoxify", {"type": "judge", "model": "m", "base_url": EVIL}]},
            ["--held_out_scorers", "detoxify", '{"type": "judge", "model": "m", "base_url": "%s"}'],
        ),
        (
            {"scorer": {"type": "judge", "model": "m", "model_init_kwargs": {"trust_remote_code": True}}},
            ["--scorer", '{"type": "judge", "model": "m", "model_init_kwargs": {"trust_remote_code": true}}'],
        ),
        (
            {"reward": {"cosine_novelty": {"embedder": "m/e", "allow_pickle": True}}},
            ["--reward", '{"cosine_novelty": {"embedder": "m/e", "allow_pickle": true}}'],
        ),
        ({"reward": {"gibberish": {"model": "{folder}"}}}, ["--reward", '{"gibberish": {"model": "{folder}"}}']),
        ({"attn_implementation": "evil/kernel"}, ["--attn_implementation", "evil/kernel"]),
        # Python code
        ({"target": "evil.fn"}, ["--target", "evil.fn"]),
        ({"target": {"model": "evil.fn"}}, ["--target", '{"model": "evil.fn"}']),
        ({"scorer": "evil.fn"}, ["--scorer", "evil.fn"]),
        ({"scorer": "evil.fn:x"}, ["--scorer", "evil.fn:x"]),
        ({"held_out_scorers": ["evil.fn:x"]}, ["--held_out_scorers", "evil.fn:x"]),
        ({"scorers": {"a": {"type": "evil.fn"}}}, ["--scorers", '{"a": {"type": "evil.fn"}}']),
        ({"reward": {"evil.fn": 1}}, ["--reward", '{"evil.fn": 1}']),
        ({"reward": {"nice": {"type": "evil.fn"}}}, ["--reward", '{"nice": {"type": "evil.fn"}}']),
    ],
)
def test_what_leads_out_of_a_runs_folder_is_repeated_or_refused(settings, flags, tmp_path, secret):
    def filled(value):
        if isinstance(value, dict):
            return {name: filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [filled(part) for part in value]
        texts = {"{file}": str(secret), "{folder}": str(other), "%s": EVIL}
        return re.sub(r"{file}|{folder}|%s", lambda m: texts[m[0]], value) if isinstance(value, str) else value

    other = tmp_path / "other"
    other.mkdir()
    folder = folder_with(tmp_path, **filled(settings))
    flags = [filled(flag) for flag in flags]
    assert asked_for(folder) == flags
    if flags[0] != "--world":  # an empty folder is none
        parse_evaluate([str(folder), *flags])


def test_all_is_listed_at_once_and_what_is_overridden_is_not(tmp_path, secret):
    settings = {"prompts": str(secret), "target": {"model": "openai:m", "base_url": EVIL}, "system": "evil.System"}
    folder = folder_with(tmp_path, **settings, system_kwargs={"file": str(secret)})
    flags = asked_for(folder)
    assert set(flags[::2]) == {"--prompts", "--target", "--system", "--system_kwargs"}
    asked = dict(zip(flags[::2], flags[1::2], strict=True))
    assert (asked["--prompts"], json.loads(asked["--system_kwargs"])) == (str(secret), {"file": str(secret)})
    assert asked_for(folder, "--target", "m/t", "--system", "perez") == ["--prompts", str(secret)]
    with pytest.raises(InputError, match=r"system 'evil\.System' cannot be imported"):
        parse_evaluate([str(folder), *flags])


def test_what_stays_in_the_folder_on_this_machine_or_on_the_hub_needs_no_repetition(tmp_path):
    folder = folder_with(tmp_path)
    for name in ("words.txt", "prompts.jsonl"):
        (folder / name).write_text("soup\n")
    (tmp_path / "soup").mkdir()  # a word is not a path
    judge = {"type": "judge", "model": "openai:m", "rubric": "Is https://evil.example in it?"}
    folder_with(
        tmp_path,
        target={"model": "openai:m", "base_url": "http://localhost:8000/v1"},
        tester="openai-community/gpt2",
        scorers={
            "a": "detoxify:unbiased",
            "b": {"type": "keyword", "words": ["soup"]},
            "c": f"keyword:{folder}/words.txt",
            "d": {**judge, "base_url": "https://api.openai.com/v1"},
        },
        reward={"harm": 1, "cosine_novelty": {"embedder": "sentence-transformers/all-MiniLM-L6-v2"}},
        prompts=str(folder / "prompts.jsonl"),
        # None of these is taken over.
        also=["x=/etc/passwd"],
        examples="/etc/passwd",
        embedder="/etc",
        response_cache="/etc",
        teaching_pairs="/etc/passwd",
    )
    args, _ = parse_evaluate([str(folder)])
    assert args.baseline == "openai-community/gpt2"
    assert (args.also, args.examples, args.embedder, args.response_cache) == (None, None, None, None)
    (tmp_path / "openai-community" / "gpt2").mkdir(parents=True)  # which transformers would load in place of the Hub's
    assert asked_for(folder) == ["--baseline", "openai-community/gpt2"]


def test_an_address_of_the_users_own_environment_needs_no_repetition(tmp_path, monkeypatch):
    folder = folder_with(tmp_path, target={"model": "openai:m", "base_url": EVIL})
    assert asked_for(folder)[0] == "--target"
    monkeypatch.setenv("OPENAI_BASE_URL", f"{EVIL}/")
    parse_evaluate([str(folder)])


def test_links_out_of_the_folder_are_not_followed(tmp_path, secret, capsys):
    folder = folder_with(tmp_path, prompts="sandbox")
    parse_evaluate([str(folder)])
    (folder / "evaluation").mkdir()
    link = folder / "evaluation" / "exchanges.jsonl"
    link.symlink_to(secret)
    for command in (["evaluate", str(folder)], ["report", str(folder)], ["push", str(folder)]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: '{link}' is a link out of its folder, to '{secret}'") and said.count("\n") == 1
    link.unlink()
    link.symlink_to("../config.yaml")  # within the folder
    parse_evaluate([str(folder)])
    link.unlink()
    (folder / "data").symlink_to(secret.parent)
    with pytest.raises(InputError, match="data' is a link out of its folder"):
        parse_evaluate([str(folder)])


@pytest.mark.parametrize("key", ["model", "adapter"])
def test_the_base_of_an_adapter_is_named_by_the_user(tmp_path, key):
    folder, base = folder_with(tmp_path, tester="m/base" if key == "model" else None), tmp_path / "base"
    base.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    if key == "model":  # the run's baseline is another
        assert asked_for(folder) == ["--baseline", str(base)]
    else:
        assert asked_for(folder, "--baseline", "none") == ["--also", f"base={base}"]
        parse_evaluate([str(folder), "--baseline", "none", "--also", f"base={base}"])
    parse_evaluate([str(folder), "--baseline", str(base)])
    parse_evaluate([str(folder), "--target", str(base)])


def test_a_world_within_the_folder_takes_its_tester_from_there_too(tmp_path):
    folder = folder_with(tmp_path, target=None, world=str(tmp_path / "theirs" / "world"))
    for place in (tmp_path / "mine", folder / "world" / "target"):
        place.mkdir(parents=True)
    world = {"tester": str(tmp_path / "mine"), "weak_topics": [], "topics": [], "rude_words": ["fool"], "openings": {}}
    (folder / "world" / "world.json").write_text(json.dumps(world))
    assert asked_for(folder) == ["--baseline", str(tmp_path / "mine")]


# -- the file of --config


def config_with(tmp_path, **settings):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), **settings}, sort_keys=False))
    return ["--config", str(file)]


@pytest.mark.parametrize(
    ("settings", "flags", "advice"),
    [
        ({"trust_remote_code": True}, ["--trust_remote_code"], "add --trust_remote_code"),
        ({"allow_pickle": True}, ["--allow_pickle"], "add --allow_pickle"),
        ({"model_init_kwargs": {"trust_remote_code": True}}, ["--trust_remote_code"], "add --trust_remote_code"),
        (
            {"scorer": {"type": "judge", "model": "m", "model_init_kwargs": {"allow_pickle": True}}},
            ["--allow_pickle"],
            "add --allow_pickle",
        ),
        (
            {"target": {"model": "openai:m", "base_url": EVIL}},
            ["--target", f'{{"model": "openai:m", "base_url": "{EVIL}"}}'],
            f"""add --target '{{"model": "openai:m", "base_url": "{EVIL}"}}' (or set OPENAI_BASE_URL to the address""",
        ),
        (
            {"target": f'{{"model": "openai:m", "base_url": "{EVIL}"}}'},
            ["--target", f'{{"model": "openai:m", "base_url": "{EVIL}"}}'],
            "add --target",
        ),
        (
            {"scorers": {"a": "detoxify", "j": {"type": "judge", "model": "m", "base_url": EVIL}}},
            ["--scorers", '{"a": "detoxify"}'],
            "add --scorers",
        ),
    ],
)
def test_a_file_alone_does_not_switch_everything_on(settings, flags, advice, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    argv = config_with(tmp_path, **settings)
    with pytest.raises(InputError) as refused:
        parse({}, argv)
    said = str(refused.value)
    assert "which a file alone cannot switch on: if you trust it, " in said and advice in said, said
    parse({}, [*argv, *flags])
    if "m/t" not in str(settings) and "target" not in settings:
        with pytest.raises(InputError, match="which a file alone cannot switch on"):
            parse_evaluate(["m/t", "--target", "m/t", "--prompts", "sandbox", *argv])


def test_environment_variables_are_set_before_the_command(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_PLANTED_HOME", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    argv = config_with(tmp_path, env={"HF_PLANTED_HOME": "/a b", "WANDB_PROJECT": "mine", "SOME_TOKEN": "abc"})
    with pytest.raises(InputError, match=r"if you trust it, put HF_PLANTED_HOME='/a b' SOME_TOKEN=\.\.\. before the"):
        parse({}, argv)
    assert "HF_PLANTED_HOME" not in os.environ
    monkeypatch.setenv("HF_PLANTED_HOME", "/a b")
    monkeypatch.setenv("SOME_TOKEN", "abc")
    parse({}, argv)
    with pytest.raises(InputError, match="env is not a mapping"):
        parse({}, config_with(tmp_path, env=["A=b"]))


def test_the_key_goes_to_addresses_of_the_user(tmp_path, monkeypatch):
    argv = config_with(tmp_path, target={"model": "openai:m", "base_url": EVIL})
    parse({}, argv)  # without a key
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", EVIL)
    parse({}, argv)
    monkeypatch.delenv("OPENAI_BASE_URL")
    for url in ("http://localhost:8000/v1", "http://127.0.0.1:8000/v1", "https://api.openai.com/v1"):
        parse({}, config_with(tmp_path, target={"model": "openai:m", "base_url": url}))
    for url in ("http://api.openai.com/v1", "https://api.openai.com.evil.example/v1", "http://localhost.evil.example"):
        with pytest.raises(InputError, match="cannot switch on"):
            parse({}, config_with(tmp_path, target={"model": "openai:m", "base_url": url}))
    with pytest.raises(InputError, match="holds a user, a password") as refused:
        parse({}, config_with(tmp_path, target={"model": "openai:m", "base_url": "http://me:hunter22@evil.example/"}))
    assert "hunter22" not in str(refused.value)
