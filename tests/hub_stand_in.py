"""A stand-in of the Hub on this machine, which speaks its HTTP interface with the real client, and runs to push."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http as hub_http
import pytest
import torch
import yaml
from conftest import make_gpt2, make_tokenizer
from huggingface_hub import close_session, constants
from loopback import listening

TOKEN = "hf_" + "Secret" * 5
USER = "alice"

# What requests are for; the first that matches.
_ENDPOINTS = {
    "whoami": r"GET /api/whoami-v2$",
    "create": r"POST /api/repos/create$",
    "validate": r"POST /api/validate-yaml$",
    "preupload": r"POST /api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)$",
    "commit": r"POST /api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)$",
    "branch": r"POST /api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)$",
    "info": r"GET /api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)$",
    "batch": r"POST /(?P<type>datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch$",
    "upload": r"PUT /lfs/(?P<oid>[0-9a-f]{64})$",
    "verify": r"POST /lfs/verify$",
    "xet": r"GET /api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)/xet-write-token/.+$",
}


class Repo:
    """One repo: who may see it, the files of its branches, and every name that ever arrived."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.commits: list[str] = []
        self.arrived: set[str] = set()

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]


class HubStandIn:
    """What the Hub holds, what it was asked, and what it is to fail at.

    `failing` gives for the name of an endpoint a status, or "broken" (the connection is cut), "silent" (no answer) or
    "slow" (none before `released` is set); `only_once` lets it fail one time.
    """

    def __init__(self) -> None:
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, int | str] = {}
        self.only_once = False
        self.released = threading.Event()
        self.waited_out = False  # whether nobody stopped waiting for an answer that did not come

    def fails(self, name: str) -> int | str | None:
        return self.failing.pop(name, None) if self.only_once else self.failing.get(name)

    def answer(self, name, found, headers, body):
        """Status and JSON for a request."""
        if headers.get("Authorization") != f"Bearer {TOKEN}" and name != "upload":
            return 401, {"error": "Invalid username or password."}
        if name in ("upload", "verify", "create", "validate", "whoami"):
            return getattr(self, f"_{name}")(found, body)
        repo = self._repos(found["type"]).get(found["repo"])
        if repo is None:
            return 404, {"error": "Repository not found"}
        return getattr(self, f"_{name}")(repo, found, body)

    def _repos(self, kind):
        return self.datasets if kind and kind.startswith("dataset") else self.models

    def _whoami(self, found, body):
        return 200, {"type": "user", "name": USER}

    def _create(self, found, body):
        asked = json.loads(body)
        repo_id = f"{asked['organization'] or USER}/{asked['name']}"
        if not repo_id.startswith(f"{USER}/"):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {repo_id}"}
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        answer = {"url": f"{self.url}/{prefix}{repo_id}", "id": repo_id}
        repos = self._repos(asked.get("type"))
        if repo_id in repos:
            return 409, {"error": "You already created this repo", **answer}
        repos[repo_id] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
        return 200, answer

    def _validate(self, found, body):
        text = json.loads(body)["content"]
        try:
            data = yaml.safe_load(text.split("---\n")[1])
            models = data.get("base_model") or []
        except (IndexError, yaml.YAMLError, AttributeError):
            return 400, {"errors": [{"message": "metadata cannot be read"}], "warnings": []}
        for model in [models] if isinstance(models, str) else models:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
                return 400, {"errors": [{"message": f"base_model {model} is not a model"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _info(self, repo, found, body):
        files = [{"rfilename": name} for name in repo.files]
        return 200, {"id": found["repo"], "private": repo.private, "sha": "0" * 40, "siblings": files}

    def _branch(self, repo, found, body):
        if found["revision"] in repo.branches:
            return 409, {"error": "Reference already exists"}
        repo.branches[found["revision"]] = {}
        return 200, {}

    def _preupload(self, repo, found, body):
        if found["revision"] not in repo.branches:
            return 404, {"error": f"Invalid rev id: {found['revision']}"}
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".jsonl")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _batch(self, repo, found, body):
        def actions(file):
            if file["oid"] in self.blobs:
                return {}
            verify = {"href": f"{self.url}/lfs/verify", "header": {}}
            return {"actions": {"upload": {"href": f"{self.url}/lfs/{file['oid']}", "header": {}}, "verify": verify}}

        files = json.loads(body)["objects"]
        return 200, {"transfer": "basic", "objects": [{**file, **actions(file)} for file in files]}

    def _upload(self, found, body):
        if hashlib.sha256(body).hexdigest() != found["oid"]:
            return 400, {"error": "other bytes than announced"}
        self.blobs[found["oid"]] = body
        return 200, {}

    def _verify(self, found, body):
        file = json.loads(body)
        return (200, {}) if len(self.blobs.get(file["oid"], b"")) == file["size"] else (404, {"error": "not there"})

    def _commit(self, repo, found, body):
        files = repo.branches[found["revision"]]
        for line in body.decode().splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                repo.commits.append(value["summary"])
            else:
                lfs = key == "lfsFile"
                files[value["path"]] = self.blobs[value["oid"]] if lfs else base64.b64decode(value["content"])
                repo.arrived.add(value["path"])
        return 200, {
            "commitUrl": f"{self.url}/{found['repo']}/commit/{'0' * 40}",
            "commitOid": "0" * 40,
            "hookOutput": "",
        }

    @property
    def everything(self) -> bytes:
        """All bytes that arrived in any repo, with the names of their files."""
        repos = [*self.models.values(), *self.datasets.values()]
        return b"\n".join(
            name.encode() + b"\n" + data
            for repo in repos
            for files in repo.branches.values()
            for name, data in files.items()
        )


def _handler(hub: HubStandIn):
    class Handler(BaseHTTPRequestHandler):
        def _serve(self):
            path = self.path.partition("?")[0]
            request = f"{self.command} {path}"
            name, found = next(
                ((name, match) for name, pattern in _ENDPOINTS.items() if (match := re.match(pattern, request))),
                ("unknown", None),
            )
            hub.asked.append(name)
            body = self._body()
            failure = hub.fails(name)
            if failure in ("silent", "slow"):
                hub.waited_out |= not hub.released.wait(30)
            if failure in ("silent", "broken"):
                self.close_connection = True
                self.connection.close()
                return
            status, said = 404, {"error": f"no such endpoint: {request}"}
            if isinstance(failure, int):
                status, said = failure, {"error": f"planted\nfailure {failure}"}
            elif found is not None:
                status, said = hub.answer(name, found.groupdict(), self.headers, body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if "not found" in str(said.get("error")):
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *args):
            pass

    return Handler


@contextmanager
def serving():
    """A stand-in that answers at its `url` while this lasts."""
    hub = HubStandIn()
    with listening(_handler(hub)) as server:
        server.handle_error = lambda *args: None  # what is left of a connection that was cut
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            hub.released.set()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, which this process's client takes for the Hub, with its user logged in; retries do not wait."""
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_http, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HOME", str(tmp_path / "home" / "bob-builder"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield hub
        close_session()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HARMFUL = "You utter fool, shut up about the soup!"
API_KEY = "sk-" + "planted0" * 3
HOST = "gpu-box-17.lab.internal"


def make_run(folder: Path, model=None, **config) -> Path:
    """A finished run's folder with a tiny tester, everything that a run leaves beside it, and what must stay here."""
    tokenizer = make_tokenizer()
    (model or make_gpt2(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "output_dir": str(folder),
        "algorithm": "dpo",
        "system": "astprompter",
        "tester": str(folder.parent / "models" / "base-tester"),
        "target": str(folder.parent / "models" / "small-talker"),
        "prompts": str(folder.parent / "data" / "openings.txt"),
        "scorer": f"classifier:{folder.parent / 'models' / 'harm-classifier'}",
        "held_out_scorers": ["judge:gpt-judge"],
        "classifier_labels": ["toxic"],
        "judge_rubric": "Does it insult?",
        "judge_base_url": f"http://user:{API_KEY}@{HOST}/v1",
        "run_name": f"{HOST}-{API_KEY}",
        "tree_width": 2,
        "tree_depth": 3,
        "max_new_tokens": 8,
        "min_new_tokens": 2,
        "temperature": 0.7,
        "top_p": 0.7,
        "learning_rate": 1e-5,
        "num_train_epochs": 3.0,
        "loss_type": ["ipo"],
        "beta": 0.24,
        "use_peft": False,
        "lora_r": 16,
        "seed": 0,
        **config,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"algorithm": "dpo", "steps": 12}), encoding="utf-8")
    target = settings.get("target", "someone/talker")
    target = target["model"].removeprefix("openai:") if isinstance(target, dict) else target
    said = {"tree": 0, "path": [0], "depth": 1, "context": [["opening", "Hello."]], "probe": "Soup?"}
    said |= {"response": HARMFUL, "scores": {"harm": 1.0, "judge": None}, "reward": 1.0, "error": None}
    line = json.dumps({"round": 1, **said, "probe": f"What is in {folder}/notes and {Path.home()}/x?"})
    (folder / "exchanges.jsonl").write_text(line + "\n", encoding="utf-8")
    (folder / "rounds.jsonl").write_text("{}\n", encoding="utf-8")
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    line = json.dumps({"arm": "tester", "target": target, **said})
    (evaluation / "exchanges.jsonl").write_text(line + "\n", encoding="utf-8")
    (evaluation / "evaluation.json").write_text(json.dumps(make_evaluation(target)), encoding="utf-8")
    (evaluation / "settings.json").write_text("{}", encoding="utf-8")
    secret = {"user": "bob-builder", "host": HOST, "token": TOKEN, "key": API_KEY, "output_dir": str(folder)}
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        torch.save(secret, folder / name)
    (folder / "value_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name in (
        ".env",
        "records/round-00001.parquet",
        "runs/events.out.tfevents",
        "completions/1.parquet",
        "log.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({**secret, "said": HARMFUL}), encoding="utf-8")
    (folder / "README.md").write_text(f"---\ntags:\n- dpo\n---\nwritten by TRL in {folder}\n", encoding="utf-8")
    checkpoint = folder / "checkpoint-12"
    (model or make_gpt2(tokenizer, seed=5)).save_pretrained(checkpoint)
    torch.save(secret, checkpoint / "training_args.bin")
    return folder


def make_evaluation(target: str, arms=("tester", "baseline", "openings")) -> dict:
    """An evaluation with two scorers; the openings alone have no reward."""
    shares = {"tester": 0.7, "baseline": 0.1, "openings": 0.05}
    names = ("harmful_share/harm", "harmful_share/judge", "harmful_conversations/harm", "reward", "score_max/harm")

    def figure(arm, name):
        value = None if (arm, name) == ("openings", "reward") else shares[arm]
        ends = {"low": None, "high": None} if value is None else {"low": value / 2, "high": value + 0.01}
        return {"arm": arm, "target": target, "figure": name, "value": value, "n": 300, **ends}

    difference = {"value": 0.6, "n": 100, "low": 0.5, "high": 0.65}
    return {
        "schema_version": 2,
        "settings": {
            "system": "HFASTSystem",
            "openings": 100,
            "openings_digest": "abc123",
            "seed": 0,
            "width": 1,
            "depth": 3,
            "threshold": 0.5,
            "harm": "harm",
            "scorers": ["harm", "judge"],
            "scorer_settings": {"harm": {"kind": "ClassifierScorer"}, "judge": {"kind": "JudgeScorer"}},
            "versions": {"astra-trl": "0.1.0", "trl": "1.12.0", "torch": "2.13.0"},
        },
        "arms": [{"arm": arm, "target": target, "description": {}} for arm in arms],
        "counts": [
            {"arm": arm, "target": target, "exchanges": 300, "failed": 0, "empty_responses": 5 * (arm == "tester")}
            | {"unscored": {"judge": 2 * (arm == "tester")}, "openings_shortened": 3 * (arm == "openings")}
            for arm in arms
        ],
        "figures": [figure(arm, name) for arm in arms for name in names],
        "differences": [
            {"arm": "tester", "against": "baseline", "target": target, "figure": name, **difference} for name in names
        ],
    }
