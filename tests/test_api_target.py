"""Whole runs and evaluations of a target behind an API, by their flags: what is asked, shown and written."""

import json
import re
import time

import pytest
import yaml
from endpoints import completion, endpoint

from astra_trl import Evaluation, InputError
from astra_trl.cli.build import Calls
from astra_trl.cli.dry_run import dry_run
from astra_trl.cli.evaluate import evaluate
from astra_trl.cli.main import main as command_line
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.cli.recipe import main
from astra_trl.hub import model_card
from astra_trl.lines import read_lines
from astra_trl.report import markdown_report, write_report
from astra_trl.sandbox import load_world, topic_of
from astra_trl.sandbox.defaults import SANDBOX

FLAGS = ["--num_train_epochs", "2", "--trees_per_round", "3", "--pairs_per_round", "8", "--tree_width", "3"]
FLAGS += ["--tree_depth", "2", "--eval_openings", "3", "--min_margin", "0", "--max_new_tokens", "16", "--seed", "3"]
FLAGS += ["--disable_tqdm", "true", "--report_to", "none"]
WORLD = load_world()


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def answer(request):
    """Rude about what the sandbox's target is; what it says depends on the conversation alone."""
    topic = topic_of(request["messages"][-1]["content"].split("\n")[-1]) or "that"
    return completion(f"Only a fool cares about {topic}." if topic in WORLD.weak_topics else f"Tell me about {topic}.")


def count_of(requests, expected):
    """The number of requests. The last ones may be on their way as a spent budget ends a run: they are waited for."""
    deadline = time.monotonic() + 10
    while len(requests) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(requests)


def target_of(url, **calling):
    return json.dumps({"model": "openai:some/model", "base_url": url, **calling})


def flags(url, folder, calling=None, **more):
    given = {"target": target_of(url, **(calling or {})), "output_dir": str(folder), **more}
    return [*FLAGS, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def lines(file):
    return list(read_lines(file))


@pytest.fixture(scope="module")
def failing_run(tmp_path_factory):
    """A run whose target fails for some conversations and says nothing in others."""
    folder = tmp_path_factory.mktemp("api") / "run"

    def shaky(request):
        last = request["messages"][-1]["content"]
        if len(last) % 7 == 0:
            return 500, {"error": {"message": "out of order"}}
        return completion("") if len(last) % 7 == 1 else answer(request)

    with endpoint(shaky) as (url, requests):
        main(SANDBOX["dpo"], flags(url, folder, {"max_retries": 1, "max_failed_share": 1}, temperature=0.9))
        yield folder, requests, url


def test_what_failed_is_left_out_counted_and_shown(failing_run, tmp_path):
    folder, *_ = failing_run
    nodes = lines(folder / "exchanges.jsonl")
    failed = [node for node in nodes if node["error"] is not None]
    own = [node for node in failed if node["error"].startswith("InternalServerError")]
    assert own and len(failed) < len(nodes)
    assert {node["error"] for node in failed} - {node["error"] for node in own} <= {
        "an earlier exchange of this conversation failed"
    }
    assert all(node["reward"] is None and node["scores"] == {} and node["response"] == "" for node in failed)
    empty = [node for node in nodes if node["error"] is None and node["response"] == ""]
    assert empty and all((node["scores"]["harm"], node["reward"]) == (None, None) for node in empty)
    from pyarrow import parquet

    lost = {node["probe"] for node in failed} - {node["probe"] for node in nodes if node["error"] is None}
    for file in (folder / "records").glob("*.parquet"):
        for record in parquet.read_table(file).to_pylist():
            assert not {record["chosen"], record["rejected"]} & lost
    rounds = lines(folder / "rounds.jsonl")
    counted = {name: sum(round[name] for round in rounds) for name in ("failed", "empty_responses", "unscored")}
    assert counted == {"failed": len(failed), "empty_responses": len(empty), "unscored": 0}
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    counts = {row["arm"]: row for row in evaluation["counts"]}
    held_out = lines(folder / "evaluation" / "exchanges.jsonl")
    for arm, row in counts.items():
        of_arm = [line for line in held_out if line["arm"] == arm]
        assert row["failed"] == sum(line["error"] is not None for line in of_arm)
        assert row["empty_responses"] == sum(line["error"] is None and not line["response"] for line in of_arm)
    assert sum(row["failed"] for row in counts.values()) and sum(row["empty_responses"] for row in counts.values())
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "out of order" in page
    usage = json.loads((folder / "usage.json").read_text())
    assert usage["failed"] >= len(own) and usage["requests"] > usage["calls"] and usage["empty"] >= len(empty)


def test_the_target_is_named_wherever_the_run_is_told_of(failing_run, tmp_path):
    folder, requests, url = failing_run
    host = url.split("/")[2]
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    described = evaluation["arms"][0]["description"]["target"]
    assert (described["model"], described["host"], described["api"]) == ("some/model", host, "chat completions")
    assert described["sampling"]["temperature"] == 0.9 and evaluation["arms"][0]["target"] == "some/model"
    card = model_card(folder)
    assert "makes **some/model** misbehave" in card and "an API, by chat completions" in card
    assert "openai:some/model" in card and host not in card
    report = markdown_report([folder])
    assert "some/model" in report and f"chat completions at {host}" in report
    assert requests[0]["temperature"] == 0.9 and requests[0]["max_tokens"] == 16


def test_a_folder_that_names_the_model_is_not_told_whole(failing_run, tmp_path, capsys):
    folder, *_ = failing_run
    config = yaml.safe_load((folder / "config.yaml").read_text())
    other = tmp_path / "run"
    other.mkdir()
    config["target"] = "openai:/home/somebody/models/target"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "rounds.jsonl").write_text((folder / "rounds.jsonl").read_text())
    for text in (model_card(other), markdown_report([other]), write_report([other], tmp_path / "r.html").read_text()):
        assert "/home/somebody" not in text and "target" in text


def test_an_evaluation_takes_over_where_the_target_is(failing_run, tmp_path, capsys):
    folder, *_ = failing_run
    with endpoint(answer) as (url, requests):
        text = (folder / "config.yaml").read_text()
        old = yaml.safe_load(text)["target"]["base_url"]
        (folder / "config.yaml").write_text(text.replace(old, url))
        common = [str(folder), "--draws", "20", "--response_cache", str(tmp_path / "cache")]
        args, *_ = parse_evaluate(common)
        target = {"model": "openai:some/model", "base_url": url, "max_retries": 1, "max_failed_share": 1}
        assert args.target == [target]
        evaluate(*parse_evaluate([*common, "--output_dir", str(tmp_path / "one")]))
        asked = len(requests)
        assert asked and {request["model"] for request in requests} == {"some/model"}
        other = json.dumps({"model": "openai:other", "base_url": url})
        several = ["--target", target_of(url), "--target", other, "--output_dir", str(tmp_path / "two")]
        evaluate(*parse_evaluate([*common, *several]))
        (folder / "config.yaml").write_text(text)
    assert {request["model"] for request in requests[asked:]} == {"other"}  # the first was read from the cache
    one = Evaluation.read(tmp_path / "one" / "evaluation.json")
    two = Evaluation.read(tmp_path / "two" / "evaluation.json")
    assert two.targets == ["some/model", "other"]
    name = f"harmful_share/{one.harm}"
    assert one.figure(name).value == two.figure(name).value
    assert "other" in capsys.readouterr().out


def test_a_local_target_leaves_the_address_of_the_run_alone(failing_run, tmp_path):
    folder, *_ = failing_run
    args, *_ = parse_evaluate([str(folder), "--target", WORLD.target])
    assert args.target == [WORLD.target] and args.output_dir.endswith("evaluation-target")
    local = json.dumps({"model": WORLD.target, "base_url": "http://localhost:9/v1"})
    with pytest.raises(InputError, match="base_url of target .* is for models behind an API: give openai:MODEL"):
        parse_evaluate([str(folder), "--target", local])
    args, *_ = parse_evaluate([str(folder), "--target", "openai:a/b", "openai:c"])
    assert args.output_dir.endswith("evaluation-b+c")


def test_a_spent_budget_stops_a_run_at_a_checkpoint_and_a_larger_one_goes_on(tmp_path, capsys):
    with endpoint(answer) as (url, requests):
        main(SANDBOX["dpo"], flags(url, tmp_path / "whole"))
        total = len(requests)
        of_rounds = json.loads((tmp_path / "whole" / "usage.json").read_text())["requests"]
        assert of_rounds <= total
        with pytest.raises(
            SystemExit, match=r"error: the budget of \d+ requests is spent: raise max_requests; --resume"
        ):
            main(SANDBOX["dpo"], flags(url, tmp_path / "run", {"max_requests": total - 30}))
        assert count_of(requests, 2 * total - 30) == 2 * total - 30
        with pytest.raises(SystemExit, match="the budget of"):  # what was asked for before counts
            main(
                SANDBOX["dpo"],
                flags(url, tmp_path / "run", {"max_requests": total - 30}, resume_from_checkpoint="true"),
            )
        assert len(requests) <= 2 * total
        main(SANDBOX["dpo"], flags(url, tmp_path / "run", {"max_requests": 9 * total}, resume_from_checkpoint="true"))
    assert (tmp_path / "run" / "exchanges.jsonl").read_bytes() == (tmp_path / "whole" / "exchanges.jsonl").read_bytes()


def test_a_judge_behind_an_api_is_asked_within_the_limits_too(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(WORLD.openings("train")[:40]), encoding="utf-8")
    own = ["--tester", WORLD.tester, "--target", WORLD.target, "--prompts", str(prompts), "--reward", '{"harm": 1}']

    def judged(request):
        said = request["messages"][-1]["content"]
        return completion("yes" if any(word in said for word in WORLD.rude_words) else "no")

    with endpoint(judged) as (url, requests):
        judge = {"type": "judge", "model": "openai:m", "rubric": "Is it rude?", "base_url": url}
        own += [*FLAGS, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "true", "--scorer"]
        for _ in range(2):  # the second time, what was asked for before counts
            with pytest.raises(SystemExit, match="the budget of 30 requests is spent: raise max_requests"):
                main({}, [*own, json.dumps({**judge, "max_requests": 30})])
            assert count_of(requests, 30) == 30
            assert json.loads((tmp_path / "run" / "usage.json").read_text())["requests"] == 30
        main({}, [*own, json.dumps({**judge, "max_requests": 3000})])
        assert len(requests) > 30
    assert {line["scores"]["judge"] for line in lines(tmp_path / "run" / "exchanges.jsonl")} == {0.0, 1.0}


def test_fields_of_requests_are_changed_by_the_settings_of_a_target_and_of_a_judge(tmp_path):
    def strict(request):
        if "seed" in request or "max_tokens" in request:
            return 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}
        return completion("no") if request["model"] == "judge" else answer(request)

    extra = {"seed": None, "max_tokens": None, "max_completion_tokens": 9}
    folder = tmp_path / "run"
    with endpoint(strict) as (url, requests):
        judge = {"type": "judge", "model": "openai:judge", "base_url": url, "extra_body": {**extra, "top_p": 0.5}}
        run = flags(url, folder, {"extra_body": extra}, num_train_epochs=1, held_out_scorers=json.dumps(judge))
        main(SANDBOX["dpo"], run)
        assert {request["model"] for request in requests} == {"some/model", "judge"}
        assert {request["max_completion_tokens"] for request in requests} == {9}
        assert {request.get("top_p") for request in requests if request["model"] == "judge"} == {0.5}
        asked = len(requests)
        evaluate(*parse_evaluate([str(folder), "--draws", "20", "--output_dir", str(tmp_path / "evaluation")]))
        assert len(requests) > asked  # with the settings of the run
        changed = flags(
            url, folder, {"extra_body": {**extra, "max_completion_tokens": 8}}, resume_from_checkpoint="true"
        )
        with pytest.raises(SystemExit, match="cannot be resumed, as its settings were different: target "):
            main(SANDBOX["dpo"], [*changed, "--num_train_epochs", "1", "--held_out_scorers", json.dumps(judge)])
    described = json.loads((folder / "evaluation" / "evaluation.json").read_text())["arms"][0]["description"]["target"]
    assert described["extra_body"] == extra


def test_a_run_whose_endpoint_forbids_a_field_is_told_which_setting_leaves_it_out(tmp_path, capsys):
    refusal = 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "not permitted"}]}
    with (
        endpoint(lambda request: refusal) as (url, _),
        pytest.raises(SystemExit, match=rf"^error: {url} refuses .* add extra_body: {{seed: null}} to the target"),
    ):
        main(SANDBOX["dpo"], flags(url, tmp_path / "run"))
    with pytest.raises(SystemExit):
        main(SANDBOX["dpo"], ["--target_extra_body", '{"seed": null}'])
    assert "target_extra_body is now a part of the mapping target" in capsys.readouterr().err


def test_too_many_failures_stop_a_run_with_the_reason(tmp_path):
    with endpoint(lambda request: (503, {"error": {"message": "out of order"}})) as (url, _):
        stopped = pytest.raises(SystemExit, match="calls failed for good, .*max_failed_share=0.05.*out of order")
        with stopped:
            main(SANDBOX["dpo"], flags(url, tmp_path / "run", {"max_retries": 0, "max_concurrency": 1}))


def test_an_adapter_is_trained_against_an_api_and_the_tester_without_it_tells_the_likelihood(tmp_path, caplog):
    with endpoint(answer) as (url, _):
        lora = {"use_peft": "true", "lora_r": 2, "lora_target_modules": r".*c_attn"}
        main(SANDBOX["dpo"], flags(url, tmp_path / "run", num_train_epochs=1, **lora))
    nodes = lines(tmp_path / "run" / "exchanges.jsonl")
    assert all(node["probe_logprob_per_token"] < 0 for node in nodes if node["probe"])
    assert sum("the likelihood is the baseline's" in record.getMessage() for record in caplog.records) == 1
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert evaluation["settings"]["likelihood_under"] == "baseline"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "openai:"}, "names no model"),
        ({"base_url": "http://localhost:9/v1"}, "names no model"),
        ({"model": "gpt2", "base_url": "http://localhost:9/v1"}, "is for models behind an API"),
        ({"model": "openai:m", "base_url": "http://me:hunter2@host/v1"}, "holds a user, a password"),
        ({"model": "openai:m", "base_url": "http://host/v1?api_key=hunter2"}, "or a query"),
        ({"model": "openai:m"}, "set OPENAI_API_KEY"),
        ({"model": "openai:m", "max_requests": 0}, "max_requests must be at least 1"),
        ({"model": "openai:m", "max_requests": "many"}, "max_requests must be at least 1, got 'many'"),
        ({"model": "openai:m", "requests_per_hour": 1}, "unexpected keyword argument 'requests_per_hour'"),
        ({"model": "openai:m", "base_url": "http://h", "logprobs": "echo"}, "plain completions"),
        ({"model": "openai:m", "base_url": "localhost:8000/v1"}, "base_url has no scheme"),
        ({"model": "openai:m", "base_url": "http://localhost:8000/v1/chat/completions"}, "leave that part out"),
        ({"model": "openai:m", "base_url": "http://h", "extra_body": "seed"}, "must be a mapping of fields"),
        ({"model": "openai:m", "base_url": "http://h", "extra_body": {"api_key": "hunter2"}}, "holds a key, a token"),
        ({"model": "openai:m", "base_url": "http://h", "logprobs": "all"}, "must be Literal"),
    ],
)
def test_flags_that_cannot_work_are_told_in_one_line(given, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(SANDBOX["dpo"], ["--target", json.dumps(given), "--output_dir", str(tmp_path / "run")])
    text = str(stopped.value)
    assert re.search(message, text) and "\n" not in text and "hunter2" not in text
    assert not (tmp_path / "run").exists()


def test_credentials_in_an_address_are_not_shown_by_an_evaluation_or_a_dry_run(tmp_path, capsys):
    address = "http://me:hunter2@host/v1"
    judge = ["--scorer", json.dumps({"type": "judge", "model": "m", "rubric": "Bad?", "base_url": address})]
    models = ["--tester", WORLD.tester, "--target", WORLD.target, "--prompts", "sandbox"]
    for command in (
        ["evaluate", WORLD.tester, "--world", "embedded", "--target", target_of(address)],
        ["train", "--dry_run", "--prompts", "sandbox", "--tester", WORLD.tester, "--target", target_of(address)],
        ["train", *models, *judge, "--output_dir", str(tmp_path)],
    ):
        assert command_line(command) == 1
        shown = capsys.readouterr()
        assert "holds a user, a password" in shown.err and "hunter2" not in shown.out + shown.err


def test_a_dry_run_tells_calls_and_tokens_instead_of_weights(tmp_path):
    openings = ["Good morning", "I love soup"]
    with endpoint(answer) as (url, requests):
        given = flags(url, tmp_path / "run", {"max_total_tokens": 5000}, pairs_per_round=1, trees_per_round=3)
        text = dry_run(*parse(SANDBOX["dpo"], given), openings)
        assert requests == []
    assert all(len(line) <= 80 or max(map(len, line.split())) > 50 for line in text.splitlines())  # a long path
    told = " ".join(text.replace("#", "").split())
    assert f"target: some/model at {url}, by chat completions: no weights here" in told
    # 2 rounds of 3 trees of 3 + 9 exchanges; 3 openings before and after, of 2 turns, and alone
    assert f"calls of the API: {2 * 3 * 12 + 3 * (2 * 2 + 1)} or more" in told
    assert "max_total_tokens 5000" in told
    again = parse({}, ["--config", write(tmp_path, text)])
    assert again[0].target == {"model": "openai:some/model", "base_url": url, "max_total_tokens": 5000}


def write(folder, text):
    file = folder / "run.yaml"
    file.write_text(text)
    return str(file)


def test_processes_share_the_limits_of_the_flags(monkeypatch):
    from astra_trl.cli import build as building

    monkeypatch.setattr(building, "PartialState", lambda: type("State", (), {"num_processes": 4})())
    args, *_ = parse({}, ["--target", '{"model": "openai:m", "max_requests": 100, "tokens_per_minute": 1000}'])
    limits = Calls(args, [args.target]).limiter.limits
    assert (limits.max_concurrency, limits.max_requests, limits.tokens_per_minute) == (2, 25, 250)
