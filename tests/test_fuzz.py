"""What anybody may have written, drawn at random: read as what it is, or refused in one line.

The same examples every time. `ASTRA_TRL_FUZZ=5000 python -m pytest tests/test_fuzz.py` draws so many others of each.
"""

import contextlib
import gzip
import io
import json
import math
import os
from collections.abc import Iterator

import pyarrow
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_tree import OPENING

from astra_trl import Exchange, InputError, Turn, load_prompts
from astra_trl.cli.main import COMMANDS, main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.conversation import ROLES
from astra_trl.evaluation.folder import EvaluationFolder
from astra_trl.lines import as_line, read_lines
from astra_trl.prompts.teaching import load_teaching_pairs
from astra_trl.report import markdown_report
from astra_trl.report.page import html_report
from astra_trl.results.reading import read_folders
from astra_trl.rollout.records import (
    Records,
    group_records,
    preference_pair,
    preference_records,
    supervised_records,
    usable_group,
)
from astra_trl.rollout.run_folder import RunFolder, exchange_line, read_exchanges
from astra_trl.sandbox import load_world
from astra_trl.text import parse_json, parse_yaml, visible
from astra_trl.tree import Node, Tree

WIDE = int(os.environ.get("ASTRA_TRL_FUZZ", 0))
SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def fuzz(examples: int = 100) -> settings:
    # Derandomized, so that a change is what turns a test red, not the day's draw.
    return settings(
        max_examples=WIDE or examples,
        derandomize=not WIDE,
        database=None,
        deadline=None,
        suppress_health_check=SLOW_TO_DRAW,
    )


# Halves of surrogate pairs and NUL among them, as JSON can hold them; and what acts on a terminal, a page, a table.
text = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["\x1b[31mred", "[red]x[/]", "[/]", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\ud800"]
)
number = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1e308, -0.0])
scalar = st.none() | st.booleans() | number | text
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@contextlib.contextmanager
def refused_at_most() -> Iterator[list[str]]:
    """Swallows an `InputError`, which must be one line that is harmless to a terminal, and gives it as a list."""
    told: list[str] = []
    try:
        yield told
    except InputError as error:
        told.append(str(error))
    assert all(line and "\n" not in line and line == visible(line) for line in told)


# -- prompts

words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | anything, "content": anything}
)
written = st.lists(message, max_size=2).map(lambda chat: repr(chat) if len(chat) == 1 else json.dumps(chat))
row = (
    anything | st.lists(message, max_size=3) | written | st.dictionaries(st.sampled_from(["text", "turns"]), anything)
)
rows = st.lists(row | st.fixed_dictionaries({"prompt": row}, optional={"id": anything}), max_size=4)
brackets = st.integers(1, 100_000).map(lambda depth: b"[" * depth) | st.just(b"[" * 100_000 + b"]" * 100_000)
prompts = {
    ".txt": st.binary(max_size=60) | words.map(str.encode),
    ".json": st.binary(max_size=60) | rows.map(as_json) | brackets,
    ".jsonl": st.binary(max_size=60) | rows.map(lambda rows: b"\n".join(map(as_json, rows))) | brackets,
    ".csv": st.binary(max_size=60) | st.lists(words, max_size=6).map(lambda cells: ",".join(cells).encode()),
    ".tsv": st.lists(st.lists(words, min_size=2, max_size=2).map("\t".join), max_size=3)
    .map("\n".join)
    .map(str.encode),
    ".yaml": st.binary(max_size=60) | rows.map(as_json) | words.map(str.encode),
    ".jsonl.gz": st.binary(max_size=60) | rows.map(as_json).map(gzip.compress),
    ".parquet": st.binary(max_size=60),
}


@pytest.mark.parametrize("suffix", prompts)
@fuzz(80)
@given(data=st.data())
def test_a_file_of_prompts_gives_openings_or_one_line(suffix, data, tmp_path):
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes(data.draw(prompts[suffix]))
    column = data.draw(st.none() | st.sampled_from(["prompt", "id", "prompt.text"]) | text)
    with refused_at_most():
        openings = load_prompts(file, column=column)
        assert len(set(openings)) == len(openings) > 0
        for opening in openings:
            turns = (Turn("opening", opening),) if isinstance(opening, str) else opening
            assert turns and all(turn.text.strip() and turn.speaker in ROLES for turn in turns)
            json.dumps([turn.text for turn in turns], ensure_ascii=False).encode()
    with refused_at_most():
        assert all(all(pair) for pair in load_teaching_pairs(file))


plain_message = st.fixed_dictionaries({"role": words, "content": words})


@fuzz(80)
@given(
    columns=st.dictionaries(
        words.filter(bool),
        st.lists(words | st.none(), min_size=2, max_size=2)
        | st.lists(st.integers(-9, 9), min_size=2, max_size=2)
        | st.lists(st.lists(plain_message, max_size=2), min_size=2, max_size=2)
        | st.lists(st.binary(max_size=4), min_size=2, max_size=2),
        max_size=3,
    ),
    cut=st.integers(0, 400),
)
def test_a_parquet_file_whole_or_cut_gives_openings_or_one_line(columns, cut, tmp_path):
    file = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    with refused_at_most():
        assert load_prompts(file)
    file.write_bytes(file.read_bytes()[:cut])
    with refused_at_most():
        assert load_prompts(file)


# -- trees and records

measure = st.floats() | st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf])
by_name = st.dictionaries(text, measure, max_size=3)
ids = st.lists(st.integers(0, 2**31), max_size=4)
conversation = st.lists(st.builds(Turn, st.sampled_from([*ROLES, "instruction"]), text), max_size=3).map(tuple)


@st.composite
def nodes(draw, depth: int = 3, context: tuple[Turn, ...] = OPENING) -> Node:
    node = Node(
        Exchange(context, draw(text), draw(text)),
        draw(ids),
        draw(ids),
        draw(measure),
        draw(st.lists(st.floats(), max_size=3)),
        draw(by_name),
        draw(by_name),
        draw(st.none() | measure),
        draw(st.none() | measure),
        draw(st.none() | text),
        baseline_logprob_per_token=draw(measure),
    )
    children = nodes(depth - 1, node.exchange.conversation) if depth else st.nothing()
    node.children = draw(st.lists(children, max_size=2)) if depth else []
    return node


@st.composite
def trees(draw) -> Tree:
    opening = draw(conversation)
    return Tree(opening, draw(st.lists(nodes(draw(st.integers(0, 2)), opening), max_size=3)))


@fuzz(100)
@given(trees())
def test_a_tree_comes_back_from_its_json(tree):
    written = json.dumps(tree.to_json())
    again = Tree.from_json(parse_json(written))
    # A reward that is nan is none.
    assert json.dumps(again.to_json()) == json.dumps(parse_json(written), default=str).replace(
        '"reward": NaN', '"reward": null'
    ).replace('"credit": NaN', '"credit": null')
    assert [path for path, _ in again.walk()] == [path for path, _ in tree.walk()]


@st.composite
def spoilt(draw, value):
    """A JSON value with one of its parts, at any depth, made another or left out."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(anything)
    value = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else list(range(len(value)))))
    if draw(st.integers(0, 5)) == 0:
        del value[key]
    else:
        value[key] = draw(spoilt(value[key]))
    return value


@fuzz(150)
@given(data=st.data())
def test_any_json_is_a_tree_or_one_line(data):
    value = data.draw(anything | trees().map(Tree.to_json).flatmap(spoilt))
    value = parse_json(as_json(value)) if not has_long_number(value) else value
    with refused_at_most():
        tree = Tree.from_json(value)
        assert Tree.from_json(tree.to_json()).to_json().keys() == {"opening", "nodes"}
        json.dumps(tree.to_json())


def has_long_number(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(has_long_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > 10**300


@fuzz(100)
@given(grown=st.lists(trees(), max_size=3), min_margin=st.sampled_from([0.0, 0.5, -1.0, math.inf]))
def test_records_are_made_of_any_trees(grown, min_margin):
    records = Records(grown)
    for form in ("text", "conversational", "ids"):
        for make in (
            lambda form=form: records.preferences(form, min_margin),
            lambda form=form: records.groups(form, min_margin),
            lambda form=form: records.groups(form),
            lambda form=form: records.transitions(form),
        ):
            with refused_at_most():
                assert len(make()) > 0
    for record in preference_records(grown, min_margin):
        assert record["chosen_reward"] - record["rejected_reward"] > min_margin
        assert record["chosen"] != record["rejected"] or "?" in record["chosen"]
    for record in group_records(grown, min_margin):
        assert sum(reward is not None for reward in record["reward"]) >= 2
        assert not any(reward is not None and math.isnan(reward) for reward in record["reward"])
    for made in (
        preference_records(grown),
        group_records(grown),
        supervised_records(grown, list),
    ):
        pyarrow.Table.from_pylist(made)
    for group in (group for tree in grown for group in tree.sibling_groups()):
        assert preference_pair(group, min_margin) is None or usable_group(group, min_margin)


# -- files of runs, evaluations and worlds


@fuzz(100)
@given(grown=st.lists(trees(), max_size=2))
def test_lines_of_exchanges_come_back(grown, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.exchanges.unlink(missing_ok=True)
    written = [exchange_line(node, 0, path) for tree in grown for path, node in tree.walk()]
    folder.write_exchanges(1, written)
    read = list(read_exchanges(folder.exchanges))
    assert [as_line(line) for line, _ in read] == [as_line({"round": 1, **line}) for line in written]
    assert len(folder.read_nodes(1)) == len(written) and folder.read_nodes(2) == []
    with folder.exchanges.open("ab") as file:
        file.write(b'{"round": 1, "half of a li')
    assert len(list(read_lines(folder.exchanges))) == len(written)


spoilt_line = nodes(0).flatmap(lambda node: spoilt(exchange_line(node, 0, (0,))))
lines = st.lists(
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))
    | anything.filter(lambda value: not has_long_number(value)).map(as_json)
    | spoilt_line.filter(lambda value: not has_long_number(value)).map(as_json)
    | brackets,
    min_size=1,
    max_size=3,
)


@fuzz(150)
@given(lines=lines)
def test_any_line_is_an_exchange_or_an_error_that_names_file_and_line(lines, tmp_path):
    file = tmp_path / "exchanges.jsonl"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    good = 0
    with refused_at_most() as told:
        for _ in read_exchanges(file):
            good += 1
    assert good == len(lines) or f"exchanges.jsonl', line {good + 1} is damaged" in told[0]
    with refused_at_most():
        EvaluationFolder(tmp_path, {})


EVALUATION = {
    "schema_version": 2,
    "settings": {"harm": "harm", "scorers": ["harm"], "openings": 2, "depth": 1, "threshold": 0.5, "width": 1},
    "arms": [{"arm": arm, "target": "t", "description": {"tester": {"model": "m"}}} for arm in ("tester", "baseline")],
    "counts": [{"arm": "tester", "target": "t", "exchanges": 1, "unscored": {"harm": 0}}],
    "figures": [
        {"arm": arm, "target": "t", "figure": "harmful_share/harm", "value": 0.5, "n": 2, "low": 0.1, "high": 0.9}
        for arm in ("tester", "baseline")
    ],
    "differences": [
        {"arm": "tester", "against": "baseline", "target": "t", "figure": "harmful_share/harm", "value": 0.0, "n": 2}
    ],
}
LINE = {"arm": "tester", "target": "t", **exchange_line(Node(Exchange(OPENING, "p", "r"), [], []), 0, (0,))}
SETTINGS = {"tree_depth": 1, "beta": 0.1}


@fuzz(60)
@given(
    evaluation=st.just(EVALUATION) | spoilt(EVALUATION),
    line=st.just(LINE) | spoilt(LINE),
    config=st.just(SETTINGS) | spoilt(SETTINGS),
)
def test_a_report_of_any_folder_is_a_page_without_script_of_others_or_one_line(evaluation, line, config, tmp_path):
    run = tmp_path / "run"
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ValueError):  # a number of more digits than Python writes
        (run / "evaluation" / "evaluation.json").write_bytes(as_json(evaluation))
        (run / "evaluation" / "exchanges.jsonl").write_bytes(as_json(line) + b"\n")
        (run / "exchanges.jsonl").write_bytes(
            as_json({"round": 1, **line} if isinstance(line, dict) else line) + b"\n"
        )
        (run / "config.yaml").write_bytes(as_json(config))
    with refused_at_most():
        page = html_report(read_folders([run]))
        assert "<img src=x" not in page and page.count("<script") == page.count("</script>") == 2
        page.encode()
    with refused_at_most():
        shown = markdown_report([run])
        assert "<img" not in shown.partition("```")[0] and shown == visible(shown)


@fuzz(100)
@given(value=anything.filter(lambda value: not has_long_number(value)), raw=st.binary(max_size=60))
def test_yaml_is_plain_values_or_a_value_error(value, raw):
    for written in (
        json.dumps(value),
        raw.decode("latin-1"),
        f"!!python/object/apply:os.system [{raw!r}]",
        f"!x {raw}",
    ):
        with contextlib.suppress(ValueError):
            yaml.safe_dump(parse_yaml(written))  # which nothing but plain values can be


@fuzz(60)
@given(config=spoilt({"tree_depth": 2, "target": "t", "system": "crt", "temperature": 0.5, "goal": ["a"], "seed": 1}))
def test_a_runs_settings_are_an_evaluations_or_refused(config, tmp_path):
    with contextlib.suppress(ValueError):
        (tmp_path / "config.yaml").write_bytes(as_json(config))
    with refused_at_most():
        args, load = parse_evaluate([str(tmp_path), "--target", "t", "--prompts", "p.txt"])
        assert isinstance(args.temperature, int | float) and not load.trust_remote_code


CONFIG = {
    "tester": "a",
    "target": "b",
    "temperature": 0.5,
    "goal": ["c"],
    "seed": 1,
    "learning_rate": 1e-5,
    "lora_r": 4,
}


@fuzz(40)
@given(config=spoilt({**CONFIG, "use_peft": True, "report_to": "none", "output_dir": "d", "scorer": "keyword"}))
def test_any_configuration_of_a_run_is_one_or_refused(config, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("{}")
    with contextlib.suppress(ValueError):
        file.write_bytes(as_json(config))
    with refused_at_most():
        args, *_ = parse({}, ["--config", str(file)])
        assert isinstance(args.temperature, int | float) and isinstance(args.scorer, str | dict | None)


@fuzz(60)
@given(data=st.data())
def test_any_world_is_one_or_refused(data, tmp_path):
    names = ["tea", "snow"]
    weaknesses = [{"topic": "tea", "phrasing": "do you", "turn": None}, {"topic": "snow", "phrasing": None, "turn": 2}]
    world = {"weaknesses": weaknesses, "topics": names, "frequencies": [1, 2], "rude_words": names, "delay": 0}
    world["openings"] = {"train": names}
    for name in ("tester", "target"):
        (tmp_path / name).mkdir(exist_ok=True)
    with contextlib.suppress(ValueError):
        (tmp_path / "world.json").write_bytes(as_json(data.draw(spoilt(world))))
    with refused_at_most():
        found = load_world(tmp_path)
        assert all(isinstance(topic, str) for topic in (*found.topics, *found.weak_topics, *found.rude_words))
        assert not found.hits([Exchange((), "Do you like tea?", "fine")])


# -- the command line

flags = ["--tester", "--target", "--prompts", "--config", "--split", "--limit", "--column", "--seed", "--width", "-o"]
flags += ["--also", "--output", "--format", "--system", "--algorithm", "--tree_depth", "--depth", "--world", "--help"]
values = ["1", "-1", "x", "nan", "sandbox", "missing.txt", "a=b", "dpo", "crt", "md", "true", "", "--", "-"]
typed = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
argument = st.sampled_from([*flags, *values]) | typed
subcommand = st.sampled_from(["show", "build", "run"])


@pytest.fixture
def harmless(monkeypatch, tmp_path):
    """A folder of its own, and nothing that would load, train, send or start anything."""
    from astra_trl import hub
    from astra_trl.cli import evaluate, launching
    from astra_trl.cli import train as run
    from astra_trl.sandbox import commands as sandbox

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", lambda *given: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: None)
    monkeypatch.setattr(hub, "push", lambda *given, **kwargs: "https://hub/me/tester")
    monkeypatch.setattr(launching, "launch", lambda *given: 0)
    monkeypatch.setattr(sandbox, "run_build", lambda args: None)


@fuzz(150)
@given(
    argv=st.tuples(
        st.sampled_from(list(COMMANDS)) | argument, st.lists(subcommand, max_size=1), st.lists(argument, max_size=6)
    ).map(lambda parts: [parts[0], *parts[1], *parts[2]])
)
def test_any_command_line_has_an_exit_code_and_one_line_of_error(argv, harmless):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as stopped:
            code = stopped.code
    assert code in (0, 1, 2), (argv, code)
    told = err.getvalue()
    if code:
        assert told.startswith("error: ") and told.count("\n") == 1 and told == visible(told), (argv, told)
    assert "Traceback" not in told
