"""A real server as the target of training runs, which a bad network and a server that dies do not change."""

import json
import threading
import time

import pytest
from flaky import flaky, save_chat_target, served
from test_api_target import FLAGS

from astra_trl.cli.recipe import main
from astra_trl.lines import read_lines
from astra_trl.sandbox.defaults import SANDBOX

pytestmark = pytest.mark.slow
BEFORE = 3 * 2 + 3  # calls of the evaluation before training
AWAY = 20  # seconds
FILES = ("exchanges.jsonl", "evaluation/exchanges.jsonl", "model.safetensors")


def run(folder, server, url=None):
    target = ["--target", json.dumps({"model": f"openai:{server.model}", "base_url": url or server.url})]
    # Siblings that say the same are answered the same: the server's random numbers are those of all requests.
    main(SANDBOX["dpo"], [*FLAGS, *target, "--target_sampling", '{"temperature": 0}', "--output_dir", str(folder)])
    usage = json.loads((folder / "usage.json").read_text())
    assert usage["failed"] == 0
    return usage, [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with served(save_chat_target(folder / "target"), folder / "log.txt") as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """What a run leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    usage, left = run(folder, server)
    nodes = list(read_lines(folder / "exchanges.jsonl"))
    assert usage["calls"] == usage["requests"] and {node["round"] for node in nodes} == {1, 2}
    assert all(node["error"] is None and node["response"] for node in nodes)
    assert {node["scores"]["harm"] for node in nodes} == {0.0, 1.0}
    return left


def test_a_network_that_spoils_every_fifth_call_leaves_the_same_run(server, undisturbed, tmp_path):
    with flaky(server.url) as (url, done):
        usage, left = run(tmp_path / "run", server, url)
    assert {"drop", "delay", "429", "500", "cut", "cut within", "passed"} == set(done)
    assert 0.1 < 1 - done["passed"] / sum(done.values()) < 0.3
    assert usage["requests"] > usage["calls"]
    assert left == undisturbed


def test_a_server_that_is_killed_in_the_middle_of_a_round_and_back_later_leaves_the_same_run(
    server, undisturbed, tmp_path
):
    seen = server.log.read_text().count("POST /v1")
    gone = []

    def kill():
        while server.log.read_text().count("POST /v1") < seen + BEFORE + 4:
            time.sleep(0.01)
        gone.append(server.away(AWAY))

    killer = threading.Thread(target=kill)
    killer.start()
    usage, left = run(tmp_path / "run", server)
    killer.join()
    gone[0].join()
    assert usage["requests"] >= usage["calls"] + 5  # it was asked in vain, again and again
    assert left == undisturbed
