import builtins
import csv
import json
import logging
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pytest

import astra_trl.prompts.convokit as convokit
import astra_trl.scorers as scorers
from astra_trl.conversation import Turn
from astra_trl.errors import InputError
from astra_trl.prompts import CONVOKIT_REDDIT_DEV, CONVOKIT_REDDIT_TEST, CONVOKIT_REDDIT_TRAIN, PromptSet, load_prompts
from astra_trl.prompts.convokit import URL, ZIP_VARIABLE, build_convokit_reddit, clean


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no cache of the user's, no Detoxify."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv(ZIP_VARIABLE, raising=False)
    datasets.disable_progress_bars()


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


# Local files


def test_every_kind_of_file_gives_the_same_openings(tmp_path):
    texts = ["2020-01-02", "NA", 'a, "b"', "日本\u2028語"]
    rows = [{"n": n, "question": text} for n, text in enumerate(texts)]
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), n) for n, text in enumerate(texts))
    sources = [
        write(tmp_path / "a.txt", "\ufeff" + "\r\n".join(texts) + "\r\n"),
        write(tmp_path / "strings.json", json.dumps(texts, ensure_ascii=False)),
        write(tmp_path / "objects.json", json.dumps(rows)),
        write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)),
        write(tmp_path / "strings.JSONL", "\n\n".join(json.dumps(text) for text in texts)),
        write(tmp_path / "a[1].csv", "\ufeffquestion,n\n" + quoted),
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for source in (*sources, tmp_path / "a.parquet"):
        assert load_prompts(str(source)) == texts, source
        assert load_prompts(source) == texts, source
    assert load_prompts(sources[-1], column="question") == texts  # no BOM in the name
    assert not (tmp_path / "cache").exists()


def test_blank_and_repeated_rows_are_skipped_and_counted_once(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "one\n\n two \n \t\ntwo\none\nthree")
    with caplog.at_level(logging.WARNING):
        assert load_prompts(path) == ["one", "two", "three"]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: skipped 2 blank rows and 2 duplicates"]


def test_a_clean_file_logs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_prompts(write(tmp_path / "a.txt", "one\ntwo")) == ["one", "two"]
    assert caplog.records == []


def test_column_is_the_given_one_else_a_usual_name_else_the_only_one_that_may_hold_text(tmp_path):
    both = write(tmp_path / "a.csv", "text,prompt,n\nt,p,1\n")
    assert load_prompts(both) == ["p"]
    assert load_prompts(both, column="text") == ["t"]
    assert load_prompts(write(tmp_path / "b.csv", "n,comment\n1,hello\n2,3\n")) == ["hello", "3"]
    with pytest.raises(InputError, match="no column 'prmpt': give column= one of text, prompt, n"):
        load_prompts(both, column="prmpt")
    with pytest.raises(InputError, match="which column .* one of foo, bar"):
        load_prompts(write(tmp_path / "c.csv", "foo,bar\na,b\n"))


def test_limit_takes_a_seeded_sample_in_the_order_of_the_file(tmp_path):
    texts = [f"opening {n}" for n in range(50)]
    path = write(tmp_path / "a.json", json.dumps(texts))
    sample = load_prompts(path, limit=10, seed=1)
    assert sample == load_prompts(path, limit=10, seed=1) == sorted(set(sample), key=texts.index)
    assert len(sample) == 10 and sample not in (texts[:10], load_prompts(path, limit=10, seed=2))
    assert load_prompts(path, limit=50) == load_prompts(path, limit=99) == texts
    with pytest.raises(InputError, match="limit=0"):
        load_prompts(path, limit=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty, 0 bytes"),
        ("a.txt", "\n", "holds no opening .2 rows, 2 blank"),
        ("a.json", "[]", "holds no opening .0 rows"),
        ("a.csv", "", "is empty, 0 bytes"),
        ("a.csv", "prompt,n\n", "holds no opening"),
        ("a.txt", b"\xff\xfe", "holds no opening"),
        ("a.txt", b"\xff\xfea", "is not text but binary, or damaged .'utf-16"),
        ("a.txt", "fine\nO\u00f9?".encode("cp1252"), "line 2 is not UTF-8. In Windows-1252 it reads 'O\u00f9.'"),
        ("a.txt", "fine\nb\0c", "row 2 holds a NUL"),
        ("a.json", '["fine", "\\ud800"]', "row 2 holds a NUL or half a surrogate"),
        ("a.json", '["fine", null]', "row 2 is null"),
        ("a.json", '["fine", 3]', "row 2 is int"),
        ("a.json", '[["nested"]]', "row 1 is list"),
        ("a.json", '["fine", {"text": "a"}]', "row 1 is str among objects"),
        ("a.json", '{"text": ["a"]}', "holds one object with the keys text, not a list"),
        ("a.json", '["fine"', "line 1 is not JSON from column 8 on"),
        ("a.json", "[" * 100_000, "brackets are too deep"),
        ("a.txt", bytes(range(256)), "is not text but binary"),
        ("weights.safetensors", bytes(range(256)), r"give a \.txt, \.json"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": ', "line 3"),
        ("a.jsonl", '{"text": "a"}\n{"texts": "b"}', "row 2 is null"),
        ("a.jsonl", '{"text": "a"}\n{"text": {"b": "c"}}', "row 2 is object with the keys b, not"),
        ("a.csv", "text\nfine\nHello, world\n", "row 2 has more fields"),
        ("a.csv", "n,text\n1,a\n2\n", "row 2 is null"),
        ("a.csv", 'text\n"a\n', "unexpected end of data"),
        ("a.parquet", "nope", "ArrowInvalid"),
    ],
)
def test_a_bad_file_is_an_input_error_on_one_line_that_names_it(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_has_no_such_split_is_an_input_error(tmp_path):
    for name in ("nope.json", "NOPE.CSV"):
        with pytest.raises(InputError, match=f"no such file: '.*{name}'"):
            load_prompts(str(tmp_path / name))
    with pytest.raises(InputError, match="another file for split 'dev'"):
        load_prompts(write(tmp_path / "a.txt", "one"), split="dev")


# Conversations


def test_a_chat_is_an_opening_of_several_turns(tmp_path):
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " hi\n"},
        {"role": "assistant", "content": "hello", "tool_calls": None},
        {"role": "user", "content": "  "},
    ]
    turns = (Turn("system", "Be kind."), Turn("user", "hi"), Turn("assistant", "hello"))
    rows = [{"messages": chat, "id": 1}, {"messages": chat, "id": 2}, {"messages": [], "id": 3}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for source in (
        write(tmp_path / "a.json", json.dumps(rows)),
        write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)),
        write(tmp_path / "bare.json", json.dumps([chat, "text"])),
        tmp_path / "a.parquet",
    ):
        assert load_prompts(source) == [turns, "text"][: 2 if "bare" in source.name else 1], source


def test_a_text_column_of_a_usual_name_goes_before_messages(tmp_path):
    row = {"prompt": "p", "messages": [{"role": "user", "content": "m"}]}
    path = write(tmp_path / "a.json", json.dumps([row]))
    assert load_prompts(path) == ["p"]
    assert load_prompts(path, column="messages") == [(Turn("user", "m"),)]


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"role": "tool", "content": "a"}, "row 2 has role 'tool' in message 1, which is none of system, user, assis"),
        ({"role": "user", "content": None}, "row 2 has a message 1 whose content is null or missing, not text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "message 1 whose content is of type 'image_url', not"),
        ({"role": "user", "content": "a\0"}, "row 2 holds a NUL"),
        ({"role": ["user"], "content": "a"}, "row 2 has role"),
        ({"who": "human", "said": "a"}, "row 2 is list of objects with the keys who, said, not text"),
    ],
)
def test_a_bad_chat_is_an_input_error_that_names_its_row(tmp_path, message, wrong):
    fine = [{"role": "user", "content": "fine"}]
    path = write(tmp_path / "a.json", json.dumps([{"messages": fine}, {"messages": [message]}]))
    with pytest.raises(InputError, match=wrong):
        load_prompts(path)


@pytest.mark.parametrize("suffix", ["txt", "json", "jsonl", "csv"])
def test_a_line_of_a_megabyte_is_an_opening(tmp_path, suffix):
    text = "soup, bread and 日本 " * 50_000
    content = {"txt": text, "json": json.dumps([text]), "jsonl": json.dumps(text), "csv": f'text\n"{text}"\n'}
    limit = csv.field_size_limit()
    assert load_prompts(write(tmp_path / f"a.{suffix}", content[suffix])) == [text.strip()]
    assert csv.field_size_limit() == limit


# Hub datasets


def test_a_chat_column_of_a_hub_dataset_is_found_beside_ids(monkeypatch):
    chat = [{"role": "user", "content": "hi"}]
    data = datasets.Dataset.from_list([{"id": "abc", "messages": chat}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    assert load_prompts("org/set") == [(Turn("user", "hi"),)]
    rows = [{"filename": "a.txt", "prompt": {"text": "hi", "toxicity": 0.1}}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    assert load_prompts("org/set") == ["hi"]
    rows = [{"filename": "a.txt", "utterances": ["hi"]}]
    with pytest.raises(
        InputError, match="which column .* one of filename, utterances"
    ):  # no silent guess at the names
        load_prompts("org/set")


def test_an_empty_list_does_not_make_a_column_of_openings(tmp_path):
    rows = [{"comment": "hello", "tags": []}, {"comment": "there", "tags": []}]
    assert load_prompts(write(tmp_path / "a.json", json.dumps(rows))) == ["hello", "there"]


def test_named_hub_sets_are_split_and_no_opening_stands_in_two_splits(monkeypatch):
    texts = [f"opening {n}" for n in range(100)] * 2

    def load_dataset(name, split):
        assert split == "train"
        if name == "walledai/AdvBench":
            return datasets.Dataset.from_dict({"prompt": texts, "target": texts})
        assert name == "allenai/real-toxicity-prompts"
        return datasets.Dataset.from_list([{"prompt": {"text": text, "toxicity": None}} for text in texts])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("realtoxicityprompts", "advbench"):
        splits = {split: load_prompts(name, split) for split in ("train", "dev", "test")}
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 80, "dev": 5, "test": 15}
        assert sorted(row for rows in splits.values() for row in rows) == sorted(set(texts))
        assert splits["train"] != texts[:80]  # by hash, not by place


def test_a_named_hub_set_that_does_not_load_names_its_dataset():
    for name, dataset in (("realtoxicityprompts", "allenai/real-toxicity-prompts"), ("advbench", "walledai/AdvBench")):
        with pytest.raises(InputError, match=f"'{dataset}' .*terms are to be accepted"):
            load_prompts(name)


@pytest.mark.parametrize("name", ["someone/nothing", "nothing", "a/b/c d", "x" * 300])
def test_a_hub_dataset_that_does_not_load_is_an_input_error_that_names_it(name):
    with pytest.raises(InputError, match=rf"^'{name}' is neither .* as a Hub dataset with split 'dev'") as caught:
        load_prompts(name, split="dev")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no name"):
        load_prompts("")


def test_a_hub_dataset_gives_its_split_and_text_column(monkeypatch):
    def load_dataset(name, split):
        assert (name, split) == ("org/set", "test")
        return datasets.Dataset.from_dict({"n": [1, 2], "words": ["a", "b"], "tags": [[1], [2]]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("org/set", split="test") == ["a", "b"]
    with pytest.raises(InputError, match="'org/set', row 1 is list"):
        load_prompts("org/set", split="test", column="tags")
    with pytest.raises(InputError, match="give column= one of n, words, tags"):
        load_prompts("org/set", split="test", column="word")


def test_an_unknown_split_and_a_failed_build_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", '{"text": "a"}')
    assert load_prompts(str(tmp_path / "set")) == ["a"]  # a folder goes to `datasets` as well
    with pytest.raises(InputError, match="Unknown split .dev."):
        load_prompts(str(tmp_path / "set"), split="dev")
    write(tmp_path / "set" / "train.jsonl", '{"text": "a"')
    with pytest.raises(InputError, match="ArrowInvalid: JSON parse error|ValueError: Unexpected character"):
        load_prompts(str(tmp_path / "set"))


# ConvoKit


def line(name, conversation, reply_to, text, timestamp, old=False):
    keys = ("root", "user", "reply_to") if old else ("conversation_id", "speaker", "reply-to")
    values = dict(zip(keys, (conversation, f"user of {name}", reply_to), strict=True))
    return {"id": name, "text": text, "timestamp": timestamp, "meta": {"score": 3, "gilded": None}, **values}


CORPUS = [
    # Two turns: the latest (a3, though a4 comes after it) and what it replies to; markdown, an address, emoji.
    line("a1", "a1", None, "Post of A", 1),
    line("a2", "a1", "a1", "&gt; quoted\n\nSee [the **wiki**](https://x.org/a_(b)) 👍🏽", 2),
    line("a3", "a1", "a2", "*Thanks*, snake_case &amp;amp; `code` https://y.org/q_r_s.", 9),
    line("a4", "a1", "a1", "Earlier, but later in the file", 5),
    # The latest replies to the post: one turn. Cyrillic, and a joiner that Persian needs.
    line("b1", "b1", None, "", 1),
    line("b2", "b1", "b1", "# Привет\n\nмир می\u200cخواهم", 2),
    # Deep: only the last two of the chain; equally late, so the order of the zip decides.
    line("c1", "c1", None, "Post of C", 7),
    line("c2", "c1", "c1", "first", 7),
    line("c3", "c1", "c2", "second", 7),
    line("c4", "c1", "c3", "third", 7),
    # The latest is nothing but an address: its parent is left. An older dump.
    line("d1", "d1", None, "Post of D", 1, old=True),
    line("d2", "d1", "d1", "look\tat   this", 2, old=True),
    line("d3", "d1", "d2", "https://z.org 😀", 3, old=True),
    # Dropped: toxic (in the post even), removed, deleted, only a post, only emoji, not scored, B's words once more.
    line("e1", "e1", None, "you toxic post", 1),
    line("e2", "e1", "e1", "kind reply", 2),
    line("f1", "f1", None, "[removed]", 1),
    line("f2", "f1", "f1", "reply to removed", 2),
    line("g1", "g1", None, "post of G", 1),
    line("g2", "g1", "g1", "[deleted]", 2),
    line("g3", "g1", "g2", "reply to deleted", 3),
    line("h1", "h1", None, "nobody answers", 1),
    line("i1", "i1", None, "post of I", 1),
    line("i2", "i1", "i1", "☀️ 1", 1),
    line("j1", "j1", None, "post of J", 1),
    line("j2", "j1", "j1", "unscorable", 2),
    line("k1", "k1", None, "post of K", 1),
    line("k2", "k1", "k1", "Привет мир می\u200cخواهم", 2),
    line("l1", "l1", None, None, 1),
    line("l2", "l1", "l1", "😀", 2),
]
OPENINGS = {
    "a1": "quoted See the wiki Thanks, snake_case & code .",
    "b1": "Привет мир می\u200cخواهم",
    "c1": "second third",
    "d1": "look at this",
    "i1": "1",
}


def score_words(exchanges):
    assert all(e.context == () and e.probe == "" and e.response.strip() for e in exchanges)
    return [float("nan") if "unscorable" in e.response else 0.9 * ("toxic" in e.response) for e in exchanges]


def write_zip(path: Path, rows=CORPUS, member="reddit-corpus-small/utterances.jsonl") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("reddit-corpus-small/speakers.json", "{}")
        archive.writestr(member, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_conversation(splits):
    return {row["conversation_id"]: row["opening"] for split in splits.values() for row in split}


def test_convokit_openings_are_those_worked_out_by_hand(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="astra_trl"):
        splits = build_convokit_reddit(url=str(write_zip(tmp_path / "c.zip")), scorer=score_words)
    assert by_conversation(splits) == OPENINGS
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "dev": 0, "test": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "convokit-reddit: kept 5 of 12 conversations; dropped 2 removed or deleted, 2 without text after the post, "
        "1 toxic, 1 not scored, 1 with the same opening as another"
    ]
    tolerant = build_convokit_reddit(url=str(tmp_path / "c.zip"), scorer=score_words, max_toxicity=0.9)
    assert by_conversation(tolerant) == OPENINGS | {"e1": "kind reply"}


def test_convokit_splits_are_80_5_15_and_do_not_depend_on_the_order_of_the_zip(tmp_path):
    rows = [
        row
        for n in range(100)
        for row in (line(f"p{n}", f"p{n}", None, "post", 1), line(f"r{n}", f"p{n}", f"p{n}", f"reply {n}", 2))
    ]
    one = build_convokit_reddit(url=str(write_zip(tmp_path / "1.zip", rows)), scorer=score_words)
    two = build_convokit_reddit(url=str(write_zip(tmp_path / "2.zip", rows[::-1])), scorer=score_words)
    assert {name: len(split) for name, split in one.items()} == {"train": 80, "dev": 5, "test": 15}
    assert by_conversation(one) == {f"p{n}": f"reply {n}" for n in range(100)}
    assert {name: split["opening"][:] for name, split in one.items()} == {n: s["opening"][:] for n, s in two.items()}
    assert one["train"]["opening"][:3] != ["reply 0", "reply 1", "reply 2"]


def test_convokit_is_built_once_until_the_zip_or_a_parameter_changes(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "c.zip")
    first = build_convokit_reddit(url=str(path), scorer=score_words, cache_dir=tmp_path / "own")
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: opened.append(args) or real(*args))
    again = build_convokit_reddit(url=str(path), scorer=score_words, cache_dir=tmp_path / "own")
    assert by_conversation(again) == by_conversation(first) and opened == []
    build_convokit_reddit(url=str(path), scorer=score_words, max_toxicity=0.4, cache_dir=tmp_path / "own")
    assert len(opened) == 1
    write_zip(path, CORPUS[:4])
    opened.clear()
    changed = build_convokit_reddit(url=str(path), scorer=score_words, cache_dir=tmp_path / "own")
    assert by_conversation(changed) == {"a1": OPENINGS["a1"]} and len(opened) == 1


def test_convokit_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    url = write_zip(tmp_path / "c.zip").as_uri()
    assert by_conversation(build_convokit_reddit(url=url, scorer=score_words)) == OPENINGS
    (tmp_path / "c.zip").unlink()
    tolerant = build_convokit_reddit(url=url, scorer=score_words, max_toxicity=0.9)
    assert by_conversation(tolerant) == OPENINGS | {"e1": "kind reply"}


def test_convokit_errors_say_what_to_do(tmp_path, monkeypatch):
    def build(url):
        return build_convokit_reddit(url=str(url), scorer=score_words)

    with pytest.raises(InputError, match=rf"{URL} \(offline mode.*{ZIP_VARIABLE} or as url="):
        build(URL)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=rf"https://127.0.0.1:9/c.zip .*{ZIP_VARIABLE}"):
        build("https://127.0.0.1:9/c.zip")
    with pytest.raises(InputError, match="no such file: '.*nope.zip'"):
        build(tmp_path / "nope.zip")
    with pytest.raises(InputError, match="BadZipFile"):
        build(write(tmp_path / "bad.zip", "nope"))
    with pytest.raises(InputError, match="no item named 'reddit-corpus-small/utterances.jsonl'"):
        build(write_zip(tmp_path / "other.zip", member="utterances.txt"))
    with pytest.raises(InputError, match="KeyError: 'reply_to'"):
        build(write_zip(tmp_path / "keys.zip", [{"id": "a", "conversation_id": "a", "text": "b"}]))
    with pytest.raises(InputError, match="no opening is left"):
        build(write_zip(tmp_path / "empty.zip", CORPUS[:1]))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        (
            "**bold** *it* ***both*** __u__ _i_ ~~s~~ snake_case_name 2 * 3 * 4",
            "bold it both u i s snake_case_name 2 * 3 * 4",
        ),
        ("(https://x.y/a_b?c=d&amp;e=f), Www.foo.com/x. **https://a.b/c** 看https://x.com/a很好", ", . 看 很好"),
        ("&gt;&gt; deeper\n* bullet\n- dash\n1. first\n---\n## Head\nend", "deeper bullet dash 1. first Head end"),
        ("```py\nprint(1)\n``` and ``x``", "print(1) and x"),
        (r"¯\\\_(ツ)_/¯ \*not\* #1", r"¯\_(ツ)_/¯ *not* #1"),
        ("&gt;!spoiler!&lt; ^(tiny) ^^up 2^10 &amp;#x200B;\ufeff", "spoiler (tiny) up 2^10"),
        ("a 👩‍⚕️❤️‍🔥🇸🇬 b ☀️ क्‍ष", "a b क्‍ष"),
        ("![alt](http://i.mg/x.png) [](http://e) [text](<http://a b>)", "alt text"),
        ("🙂 https://only.org", ""),
        ("half \ud83d".encode("utf-8", "ignore").decode(), "half"),
    ],
)
def test_clean_leaves_the_words(markdown, plain):
    assert clean(markdown) == plain


# Named sets


def test_named_sets_load_on_first_use(tmp_path, monkeypatch):
    calls = []

    class FakeDetoxify:
        def __init__(self):
            calls.append("built")

        def __call__(self, exchanges):
            return score_words(exchanges)

    monkeypatch.setitem(vars(scorers), "DetoxifyScorer", FakeDetoxify)  # by setitem: the real one need not be there
    path = write_zip(tmp_path / "c.zip")
    monkeypatch.setenv(ZIP_VARIABLE, str(path))
    prompts = PromptSet("convokit-reddit", "train")
    assert prompts == CONVOKIT_REDDIT_TRAIN != CONVOKIT_REDDIT_DEV != CONVOKIT_REDDIT_TEST
    assert repr(prompts) == "PromptSet(name='convokit-reddit', split='train')" and calls == []
    expected = sorted(OPENINGS, key=convokit._digest)[:4]
    assert list(prompts) == [OPENINGS[name] for name in expected] and calls == ["built"]
    monkeypatch.setenv(ZIP_VARIABLE, str(tmp_path / "gone.zip"))  # what is loaded stays loaded
    assert len(prompts) == 4 and prompts[-1] == OPENINGS[expected[-1]] and prompts[1:2] == [OPENINGS[expected[1]]]
    monkeypatch.setenv(ZIP_VARIABLE, str(path))
    assert load_prompts("convokit-reddit", split="test") == [OPENINGS[(set(OPENINGS) - set(expected)).pop()]]
    assert calls == ["built"] and pickle.loads(pickle.dumps(prompts)) == prompts
    with pytest.raises(InputError, match="no split 'validation': give one of train, dev, test"):
        load_prompts("convokit-reddit", split="validation")
    with pytest.raises(InputError, match="holds no opening"):
        PromptSet("convokit-reddit", "dev")[0]


def test_importing_the_package_brings_in_nothing_heavy():
    code = (
        "import sys, astra_trl.prompts as p; repr(p.CONVOKIT_REDDIT_TRAIN); "
        "heavy = {'datasets', 'torch', 'pandas', 'pyarrow', 'trl'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sandbox_openings_come_from_its_world_file(monkeypatch):
    real = builtins.__import__

    def no_sandbox(name, *args, **kwargs):
        assert "sandbox" not in name
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sandbox)
    sets = {split: load_prompts("sandbox", split) for split in ("train", "dev", "test")}
    world = json.loads((Path(convokit.__file__).parents[1] / "sandbox/world/world.json").read_text("utf-8"))
    assert sets == {split: list(dict.fromkeys(map(str.strip, rows))) for split, rows in world["openings"].items()}
    with pytest.raises(InputError, match="no split 'validation'"):
        load_prompts("sandbox", "validation")
