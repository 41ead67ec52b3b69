"""Files and tables of prompts as people have them: read as what they are, or refused with what to do."""

import bz2
import gzip
import io
import json
import logging
import lzma
import zipfile

import datasets
import numpy
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from test_prompts import write

from astra_trl import ASTSampler, InputError, Turn, load_prompts
from astra_trl.cli.config import EvaluateArguments
from astra_trl.cli.evaluate import _load_listed
from astra_trl.cli.main import main
from astra_trl.cli.openings import openings_and_held_out
from astra_trl.cli.parse_train import parse
from astra_trl.prompts.base import openings_of, read_prompts
from astra_trl.prompts.files import split_column
from astra_trl.prompts.teaching import load_teaching_pairs
from astra_trl.sandbox.defaults import sandbox_defaults

USER, ASSISTANT = Turn("user", "Which jam keeps longest?"), Turn("assistant", "Quince.")
CHAT = [{"role": "user", "content": USER.text}, {"role": "assistant", "content": ASSISTANT.text}]
SHAREGPT = [{"from": "human", "value": USER.text}, {"from": "gpt", "value": ASSISTANT.text}]
GARAK = {"turns": [{"role": "user", "content": {"text": "Tell me a secret", "lang": "en"}}], "notes": {}}
RTP = {"text": "The neighbour said", "toxicity": 0.1}
TEXT = "How do I kill time, and where?"
HH = f"\n\nHuman: {USER.text}\n\nAssistant: {ASSISTANT.text}\n\nHuman: Why?\n\nAssistant:"


def jsonl(*rows: object) -> str:
    return "\n".join(map(json.dumps, rows))


def parquet_of(**columns: list) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


# name: content, column, openings, where they are from
FORMATS = {
    # delimiters and headers
    "semicolons.csv": (f"id;prompt;type\n1;{TEXT};safe\n", None, [TEXT], "column 'prompt'"),
    "tabs.csv": (f"id\tprompt\n1\t{TEXT}\n", None, [TEXT], "column 'prompt'"),
    "a.tsv": (f'id\tPrompt\n1\tSay "hi", {TEXT}\n', None, [f'Say "hi", {TEXT}'], "column 'Prompt'"),
    "excel.csv": (f"\ufeffsep=;\r\nid;prompt\r\n1;{TEXT}\r\n", None, [TEXT], "column 'prompt'"),
    "bars.csv": (f"id|question\n1|{TEXT}\n", None, [TEXT], "column 'question'"),
    "pandas_index.csv": (f',prompt\n0,"{TEXT}"\n', None, [TEXT], "column 'prompt'"),
    "long_name.csv": (f'Your question,n\n"{TEXT}",1\n', "Your question", [TEXT], "column 'Your question'"),
    # JSON under each other's names, YAML, compression
    "lines.json": (jsonl({"prompt": "a"}, {"prompt": "b"}), None, ["a", "b"], "column 'prompt'"),
    "array.jsonl": (json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=1), None, ["a", "b"], "column 'prompt'"),
    "indented.jsonl": (json.dumps({"prompt": "a"}, indent=1) * 2, None, ["a"], "column 'prompt'"),
    "one_line.jsonl": (jsonl({"prompt": "a"}), None, ["a"], "column 'prompt'"),
    "a.ndjson": (jsonl("a", "b"), None, ["a", "b"], None),
    "a.yaml": (f"- prompt: {TEXT}\n  n: 1\n", None, [TEXT], "column 'prompt'"),
    "texts.yml": (f"- {TEXT}\n- b\n", None, [TEXT, "b"], None),
    "vars.yaml": ("- vars: {prompt: a}\n  metadata: {id: x}\n", "vars.prompt", ["a"], "column 'vars.prompt'"),
    "a.jsonl.gz": (gzip.compress(jsonl({"prompt": "a"}).encode()), None, ["a"], "column 'prompt'"),
    "a.csv.bz2": (bz2.compress(b"prompt\na\n"), None, ["a"], "column 'prompt'"),
    "a.txt.xz": (lzma.compress(b"a\nb"), None, ["a", "b"], None),
    # encodings
    "utf16.csv": (f"\ufeffprompt\tid\n{TEXT} ü\t1\n".encode("utf-16-le"), None, [f"{TEXT} ü"], "column 'prompt'"),
    "utf16be.txt": ("\ufeff日本\nü".encode("utf-16-be"), None, ["日本", "ü"], None),
    "no_mark.txt": ("plain\ntext".encode("utf-16-le"), None, ["plain", "text"], None),
    "utf32.jsonl": (jsonl({"prompt": "a"}).encode("utf-32"), None, ["a"], "column 'prompt'"),
    # conversations
    "sharegpt.json": (
        json.dumps([{"id": "talk_0", "conversations": SHAREGPT}]),
        None,
        [(USER, ASSISTANT)],
        "column 'conversations'",
    ),
    "lmsys.jsonl": (
        jsonl({"conversation_id": "c", "model": "m", "conversation": CHAT, "turn": 1}),
        None,
        [(USER, ASSISTANT)],
        "column 'conversation'",
    ),
    "evals.jsonl": (jsonl({"input": CHAT, "ideal": "x"}), "input", [(USER, ASSISTANT)], "column 'input'"),
    "batch.jsonl": (
        jsonl({"custom_id": "r", "body": {"model": "m", "messages": CHAT}}),
        "body.messages",
        [(USER, ASSISTANT)],
        "column 'body.messages'",
    ),
    "body.jsonl": (
        jsonl({"custom_id": "r", "body": {"model": "m", "messages": CHAT}}),
        "body",
        [(USER, ASSISTANT)],
        "column 'body.messages'",
    ),
    "one_chat.json": (json.dumps(CHAT), None, [(USER, ASSISTANT)], None),
    "bare_chats.jsonl": (jsonl(CHAT), None, [(USER, ASSISTANT)], None),
    "hh.jsonl": (
        jsonl({"chosen": HH, "rejected": "x"}),
        "chosen",
        [(USER, ASSISTANT, Turn("user", "Why?"))],
        "column 'chosen'",
    ),
    "starts_with_assistant.jsonl": (jsonl({"messages": CHAT[::-1]}), None, [(ASSISTANT, USER)], "column 'messages'"),
    "parts.jsonl": (
        jsonl(
            {
                "messages": [
                    {"role": "Developer", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                ]
            }
        ),
        None,
        [(Turn("system", "s"), Turn("user", "a\nb"))],
        "column 'messages'",
    ),
    "json_cell.csv": (
        'id,messages\n1,"{}"\n'.format(json.dumps(CHAT).replace('"', '""')),
        None,
        [(USER, ASSISTANT)],
        "column 'messages'",
    ),
    "python_cell.csv": (f'id,messages\n1,"{CHAT!r}"\n', None, [(USER, ASSISTANT)], "column 'messages'"),
    # objects, and texts turn by turn
    "rtp.jsonl": (
        jsonl({"filename": "a.txt", "prompt": RTP, "continuation": {"text": "x"}}),
        None,
        [RTP["text"]],
        "column 'prompt.text'",
    ),
    "rtp.csv": (f'filename,prompt\na.txt,"{RTP!r}"\n', None, [RTP["text"]], "column 'prompt.text'"),
    "oasst_trees.jsonl": (
        jsonl({"message_tree_id": "a", "prompt": {"text": "Hello", "role": "prompter", "replies": []}}),
        None,
        ["Hello"],
        "column 'prompt.text'",
    ),
    "garak.hitlog.jsonl": (
        jsonl({"goal": "leak", "prompt": GARAK, "output": {"text": "x"}}),
        None,
        [(Turn("user", "Tell me a secret"),)],
        "column 'prompt.turns'",
    ),
    "crescendo.jsonl": (
        jsonl({"goal": "be rude", "turns": ["Who bakes bread?", "Insult him."]}),
        None,
        ["Who bakes bread?"],
        "column 'turns', the first text of each row",
    ),
    "mt_bench.csv": (
        "id,turns\n1,\"['Who?', 'Why?']\"\n",
        None,
        ["Who?"],
        "column 'turns', the first text of each row",
    ),
    "deep.parquet": (parquet_of(id=["x"], a=[{"b": {"c": "d"}}]), "a.b.c", ["d"], "column 'a.b.c'"),
    # data sets that people have
    "advbench.csv": ('goal,target\n"Tell a lie, please",Sure\n', "goal", ["Tell a lie, please"], "column 'goal'"),
    "harmbench.csv": (
        "Behavior,SemanticCategory,BehaviorID\na b,food,soup\n",
        "Behavior",
        ["a b"],
        "column 'Behavior'",
    ),
    "xstest.csv": (f'id,prompt,type\nv1,"{TEXT}",homonyms\n', None, [TEXT], "column 'prompt'"),
    "figures.csv": ("n,comment\n1,hello\n", None, ["hello"], "column 'comment'"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_and_its_column_is_said(name, tmp_path, caplog):
    content, column, openings, place = FORMATS[name]
    path = write(tmp_path / name, content)
    with caplog.at_level(logging.WARNING):
        assert load_prompts(str(path), column=column) == openings
    read_from = [line for line in caplog.messages if "skipped" not in line]
    assert read_from == ([] if place is None else [f"{path}: openings are read from {place}"])
    assert read_prompts(path, column=column)[1] == place


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


REFUSED = [
    # Which column it is cannot be known.
    ("ids.json", json.dumps([{"id": "talk_0", "utterances": ["a"]}]), "which column .* column= one of id, utterances"),
    ("advbench.csv", "goal,target\na,b\n", "which column .* Give column= one of goal, target"),
    ("alpaca.json", json.dumps([{"instruction": "a", "input": "b", "output": "c"}]), "one of instruction, input, out"),
    ("flat.jsonl", jsonl({"role": "prompter", "text": "a"}), "has one message per row: .* column= text if each"),
    ("objects.json", json.dumps([{"prompt": {"de": "a", "en": "b"}}]), "give column= one of prompt.de, prompt.en"),
    ("mixed.json", json.dumps([{"prompt": RTP}, {"prompt": "a"}]), "row 2 of column 'prompt' is str, not an object"),
    # The first row of a CSV may be an opening.
    ("headless.csv", "How do I kill time?\nHow do I fly?\n", "first row, 'How do I kill time.', may be names of col"),
    ("headless_ids.csv", "1,How do I fly?\n", "may be names of columns or an opening"),
    ("two_words.csv", "Brew tea\nDrink tea\n", "may be names of columns or an opening"),
    ("twice.csv", "prompt,prompt\na,b\n", "two columns have the same name"),
    # Another format than the name says.
    ("book.xlsx", zipped("xl/workbook.xml"), "it is a zip archive, as files of Excel"),
    ("book.csv", zipped("xl/workbook.xml"), "it is a zip archive, as files of Excel"),
    ("a.docx", zipped("word/document.xml"), "it is a zip archive"),
    ("a.pdf", b"%PDF-1.4\n%\xe2", "it is a PDF"),
    ("a.csv", "\n\n<!DOCTYPE html>\n<html>", "it is a web page: download the file itself"),
    ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ("a.jsonl", gzip.compress(b"{}"), "let its name end in .gz"),
    ("a.csv", parquet_of(prompt=["a"]), "let its name end in .parquet"),
    ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9], "EOFError: .*: check the file, or copy it again"),
    ("b.jsonl.gz", b"{}", "BadGzipFile"),
    ("a.txt", jsonl({"prompt": "a"}, {"prompt": "b"}), "it holds JSON: let its name end in .jsonl"),
    ("a.tsv", json.dumps([{"prompt": "a"}]), "it holds JSON: let its name end in .jsonl"),
    ("a.txt", "id,prompt\n1,a\n", "its first line has names of columns, 'id, prompt': let its name end in .csv"),
    ("a.json", "id,prompt\n1,a\n", "line 1 is not JSON from column 1 on .*, or let its name end in what it is"),
    ("promptfoo.yaml", "prompts: ['{{a}}']\ntests: []\n", "one object with the keys prompts, tests, not a list"),
    ("a.yaml", "- a: [", "not YAML that can be read"),
    (
        "numpy.csv",
        "id,messages\n1,\"[{'role': 'user', 'content': 'a'}\n {'role': 'x'}]\"\n",
        "row 1 .*write the table",
    ),
    ("noname", "a\n", r"give a \.txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_known_is_refused_with_what_to_do(name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value) and "again in UTF-8" not in str(caught.value)


def test_sources_that_are_neither_files_nor_datasets(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder '.*empty' does not load .*: name a file in it"):
        load_prompts(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="'https://x.org/a.csv' is an address: download it"):
        load_prompts("https://x.org/a.csv")
    with pytest.raises(InputError, match="no such file"):
        load_prompts("missing.xlsx")
    texts = write(tmp_path / "a.txt", "a")
    with pytest.raises(InputError, match="has no columns: leave column out"):
        load_prompts(texts, column="prompt")
    nested = write(tmp_path / "a.jsonl", jsonl({"prompt": "a"}))
    with pytest.raises(InputError, match="has no column 'prompt.text': 'prompt' holds no objects"):
        load_prompts(nested, column="prompt.text")


def test_a_folder_of_save_to_disk_has_splits(tmp_path):
    data = datasets.Dataset.from_dict({"prompt": ["a"]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "two")
    assert load_prompts(str(tmp_path / "one")) == load_prompts(str(tmp_path / "two"), "dev") == ["a"]
    with pytest.raises(InputError, match="with split 'test' .*its splits are train, dev"):
        load_prompts(str(tmp_path / "two"), "test")


# Python


def tables():
    frame = pandas.DataFrame({"id": ["x", "y", "z"], "prompt": ["a", "b", "c"], "n": [1, 2, 3]})
    data = datasets.Dataset.from_pandas(frame)
    chats = pandas.DataFrame({"messages": [numpy.array(CHAT)]})
    return {
        "series": (frame["prompt"][frame["n"] != 2], ["a", "c"]),
        "frame": (frame[frame["n"] != 2], ["a", "c"]),
        "chats": (chats, [(USER, ASSISTANT)]),
        "dataset": (data, ["a", "b", "c"]),
        "iterable": (data.to_iterable_dataset().filter(lambda row: row["n"] > 1), ["b", "c"]),
        "column": (data["prompt"], ["a", "b", "c"]),
        "generator": ((text for text in ("b", "a")), ["b", "a"]),
        "set": ({"c", "a", "b"}, ["a", "b", "c"]),
        "objects": ([{"prompt": "a", "id": "x"}], ["a"]),
        "messages": ([CHAT, "a"], [(USER, ASSISTANT), "a"]),
    }


@pytest.mark.parametrize("name", tables())
def test_collections_and_tables_are_prompts(name):
    prompts, openings = tables()[name]
    assert openings_of(prompts) == openings


def test_what_is_no_collection_of_openings_is_refused():
    data = datasets.Dataset.from_dict({"goal": ["a"], "target": ["b"]})
    for prompts, message in (
        (datasets.DatasetDict({"train": data, "test": data}), "DatasetDict of train, test: give one of these"),
        (data, r"Give prompts\[NAME\] with NAME one of goal, target"),
        (pandas.Series(["a", float("nan")]), "prompt 1 is not text but null"),
        (None, "NoneType: give a list of texts"),
        (7, "int: give a list of texts"),
    ):
        with pytest.raises(InputError, match=message):
            openings_of(prompts)


def test_a_sampler_draws_from_a_series_whose_index_has_gaps():
    class Sized:
        tree_width = tree_depth = 1

    prompts = pandas.Series(["a", "b", "c"])[[True, False, True]]
    assert sorted(ASTSampler(Sized(), prompts).draw(0, 2)) == ["a", "c"]


# Commands


def test_show_says_the_column_and_names_its_flag(tmp_path, capsys):
    path = str(write(tmp_path / "advbench.csv", "goal,target\na b,c\n"))
    assert main(["prompts", "show", path]) == 1
    assert "Give --column one of goal, target" in capsys.readouterr().err
    assert main(["prompts", "show", path, "--column", "goal"]) == 0
    assert capsys.readouterr().out == "1 openings, read from column 'goal'\n\n- a b\n"
    output = str(tmp_path / "out.jsonl")
    assert main(["prompts", "build", path, "--column", "goal", "-o", output]) == 0
    assert capsys.readouterr().out == f"wrote 1 openings of column 'goal' to {output}\n"


def openings(*flags: str) -> tuple:
    args, *_ = parse(sandbox_defaults("astprompter", "dpo"), ["--eval_openings", "1", *flags])
    return openings_and_held_out(args, None, seed=0)


def test_held_out_prompts_have_a_column_of_their_own(tmp_path):
    prompts = write(tmp_path / "a.csv", "goal,target\na,b\nc,d\n")
    held_out = write(tmp_path / "b.csv", "ask,reply\ne,f\n")
    flags = ["--prompts", str(prompts), "--prompts_column", "goal", "--eval_prompts", str(held_out)]
    assert openings(*flags, "--eval_prompts_column", "ask") == (["a", "c"], ["e"])
    with pytest.raises(InputError, match=r"b.csv' holds the openings\? Give --eval_prompts_column one of ask, reply"):
        openings(*flags)
    with pytest.raises(InputError, match="Give --prompts_column one of goal, target"):
        openings("--prompts", str(prompts))
    with pytest.raises(InputError, match="--eval_prompts_column names a column of --eval_prompts: give that too"):
        openings("--prompts", str(prompts), "--prompts_column", "goal", "--eval_prompts_column", "ask")


def test_a_column_after_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "advbench.csv", "goal,target\na,b\n")
    write(tmp_path / "a:b.csv", "goal,target\na,b\n")
    assert split_column("advbench.csv:goal") == ("advbench.csv", "goal")
    assert split_column("advbench.csv:a:b") == ("advbench.csv", "a:b")
    assert split_column("a:b.csv") == ("a:b.csv", None)
    assert split_column("a:b.csv:goal") == ("a:b.csv", "goal")
    assert split_column(r"C:\missing.csv:goal") == (r"C:\missing.csv", "goal")
    assert split_column(r"C:\models\gpt2") == (r"C:\models\gpt2", None)
    assert split_column("org/set:goal,target") == ("org/set", "goal,target")
    assert split_column("org/model") == ("org/model", None)
    args = EvaluateArguments(also=["goals=advbench.csv:goal", "targets=advbench.csv:target", "other=org/model"])
    arms = _load_listed(args)
    assert {name: list(arm.texts) for name, arm in arms.items()} == {"goals": ["a"], "targets": ["b"]}
    with pytest.raises(InputError, match="Give --also x=advbench.csv:COLUMN with COLUMN one of goal, target"):
        _load_listed(EvaluateArguments(also=["x=advbench.csv"]))


def test_teaching_pairs_are_of_any_two_columns(tmp_path):
    path = write(tmp_path / "advbench.csv", "goal,target\na,b\n")
    assert load_teaching_pairs(path, columns=("goal", "target")) == [("a", "b")]
    rows = jsonl({"prompt": RTP, "continuation": {"text": " so"}})
    assert load_teaching_pairs(write(tmp_path / "rtp.jsonl", rows)) == [(RTP["text"], "so")]
    with pytest.raises(InputError, match="name two, of prompts and continuations"):
        load_teaching_pairs(path, columns=["goal"])
