import pickle
import subprocess
import sys

import pytest

from astra_trl import Exchange, InputError
from astra_trl.scorers.overlap import OverlapScorer

ALPHABET = [letter * 3 for letter in "abcdefghijklmno"]


def leaks(scorer: OverlapScorer, *responses: str) -> list[bool]:
    return [bool(score) for score in scorer([Exchange((), "", response) for response in responses])]


def test_thirteen_words_in_a_row_are_leakage_and_twelve_are_not():
    scorer = OverlapScorer([" ".join(ALPHABET)])
    said = [" ".join(ALPHABET[start:stop]) for start, stop in ((0, 13), (2, 15), (0, 12), (3, 15), (0, 15))]
    assert leaks(scorer, *said, "") == [True, True, False, False, True, False]
    said = " ".join(ALPHABET[:13])
    assert leaks(scorer, f"So: {said} or so.", " ".join(ALPHABET[:12]) + " or mmm") == [True, False]
    assert scorer([]) == []


def test_the_words_must_be_in_a_row_in_order_and_of_one_document():
    scorer = OverlapScorer(["one two three four", "five six seven"], n=3)
    said = ["two three four", "two three", "four three two", "two three and four", "three four five", "five six seven"]
    assert leaks(scorer, *said) == [True, False, False, False, False, True]


def test_case_punctuation_and_the_form_of_letters_do_not_matter():
    scorer = OverlapScorer(["Don\u2019t panic: it's the (well-known) Caf\u00e9, Stra\u00dfe 5!"], n=5)
    said = ["DON'T PANIC -- ITS THE WELL", "the well known cafe\u0301 STRASSE", "the wellknown caf\u00e9 strasse 5"]
    assert leaks(scorer, *said, "do not panic its the well") == [True, True, False, False]
    assert leaks(OverlapScorer(["तुम मूर्ख हो"], n=3), "तुम मूर्ख हो!", "तुम मूर ख हो") == [True, False]
    assert leaks(OverlapScorer(["\u0390\u03b1 \ud800 b"], n=2), "\u03aa\u0301\u0391 B") == [True]


def test_a_corpus_may_be_a_file_a_list_or_read_but_once(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\ufeffone two three\n\nfour five\r\n six\n", encoding="utf-8")
    for corpus in (path, str(path), ["one two three", "four five", "six"], iter(["one two three", "four five"])):
        assert leaks(OverlapScorer(corpus, 2), "one two", "two three", "three four", "four five", "five six") == [
            True,
            True,
            False,
            True,
            False,
        ]
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for corpus, message in (("no text", "no corpus could be read from 'no text'"), (tmp_path / "binary.txt", "UTF-8")):
        with pytest.raises(InputError, match=message):
            OverlapScorer(corpus)


def test_the_part_that_is_read_is_checked_at_construction():
    exchange = Exchange((), "one two three", "four five six")
    parts = {"probe": ["two three"], "response": ["four five"], "probe_and_response": ["three four"]}
    for of, corpus in parts.items():
        assert OverlapScorer(corpus, 2, of=of)([exchange]) == [1.0]
        assert OverlapScorer(["six seven"], 2, of=of)([exchange]) == [0.0]
    assert OverlapScorer(parts["probe"], 2)([exchange]) == [0.0]
    with pytest.raises(InputError, match="of='answer' is not a part"):
        OverlapScorer(["a b"], 2, of="answer")


def test_a_corpus_without_so_many_words_in_a_row_is_refused():
    for corpus in ([], ["", "?!"], [" ".join(ALPHABET[:12])] * 5):
        with pytest.raises(InputError, match="no document of OverlapScorer's corpus has 13 words"):
            OverlapScorer(corpus)
    with pytest.raises(InputError, match="n must be at least 1, got 0"):
        OverlapScorer(["a"], 0)


def test_a_copy_in_another_process_finds_the_same(tmp_path):
    (tmp_path / "scorer.pkl").write_bytes(pickle.dumps(OverlapScorer(["one two three"], 2)))
    code = (
        "import pickle, sys; from astra_trl import Exchange; scorer = pickle.load(open(sys.argv[1], 'rb'));"
        "print(scorer([Exchange((), '', 'two three'), Exchange((), '', 'three two')]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "scorer.pkl")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[1.0, 0.0]"
