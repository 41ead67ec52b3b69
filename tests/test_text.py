"""Untrusted text: what is shown of it, and what is read from it."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_tree import OPENING, make_node

from astra_trl import InputError, Turn
from astra_trl.evaluation.results import Evaluation
from astra_trl.results.terminal import show, transcript
from astra_trl.text import parse_json, parse_object, parse_yaml, visible
from astra_trl.tree import Tree

HOSTILE = "\x1b[31m[red]x[/] [/] [link=http://a]y[/link]\x07\r\u202e\ud800"
EVERY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def test_active_characters_are_replaced_by_their_code():
    for text, shown in (
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred⟨U+001B⟩[0m"),
        ("\x1b]8;;http://a\x07link", "⟨U+001B⟩]8;;http://a⟨U+0007⟩link"),
        ("a\u202egpj.exe", "a⟨U+202E⟩gpj.exe"),
        ("pass\u200bword\ufeff", "pass⟨U+200B⟩word⟨U+FEFF⟩"),
        ("\U000e0041hidden", "⟨U+E0041⟩hidden"),
        ("bell\a back\b\r over", "bell⟨U+0007⟩ back⟨U+0008⟩⟨U+000D⟩ over"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
        ("line\u2028end", "line⟨U+2028⟩end"),
        ("blank\u3164letter", "blank⟨U+3164⟩letter"),
        ("\x9b1m", "⟨U+009B⟩1m"),
    ):
        assert visible(text) == shown


def test_ordinary_text_is_unchanged():
    for text in ("plain", "two\nlines\tand a tab", "naïve Ω 日本語 שלום سلام", "👍🏽 ❤️", "a <b> & c", ""):
        assert visible(text) == text


@given(EVERY_TEXT)
def test_no_active_character_is_left_in_any_text(text):
    for char in visible(text):
        assert char in "\n\t\u00ad" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    visible(text).encode()


def test_yaml_makes_no_objects_and_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    for text in (
        f"!!python/object/apply:os.mkdir ['{marker}']",
        f"a: !!python/object/new:os.mkdir ['{marker}']",
        "!!python/name:os.system",
    ):
        with pytest.raises(ValueError, match="could not determine a constructor"):
            parse_yaml(text)
    assert not marker.exists()


def test_short_texts_that_expand_without_end_are_refused():
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for text in (laughs, "&a [*a]", "&a {b: *a}"):
        with pytest.raises(ValueError, match="more than 1000000 values"):
            parse_yaml(text)
    for parse in (parse_yaml, parse_json):
        with pytest.raises(ValueError, match="too deep"):
            parse("[" * 100_000 + "]" * 100_000)
    assert parse_yaml("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}  # as YAML writes a list that comes twice


def test_yaml_has_each_key_once_and_says_where_it_is_wrong():
    for text, message in (
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' is given twice, first in line 1"),
        ("a: {b: 1, b: 2}", "line 1: key 'b' is given twice"),
        ("a:\n\tb: 1", "line 2: a tab: indent with spaces"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2: expected a single document in the stream but found another document"),
        ("a\x00: 1", r"it is not text: character 2 is U\+0000"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            parse_yaml(text)
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, k: 2}") == {"a": {"k": 1}, "b": {"k": 2}}  # overrides, as meant
    with pytest.raises(ValueError, match="^key 'a' is given twice$"):
        parse_json('{"a": 1, "a": 2}', unique_keys=True)


def test_numbers_of_yaml_are_those_of_json():
    assert parse_yaml("[1e-5, -1E3, .5e2, 1.0e-5, 12]") == [1e-5, -1000.0, 50.0, 1e-5, 12]
    assert parse_yaml("[12e5a, e5, no, 012]", as_text=True) == ["12e5a", "e5", "no", "012"]
    assert parse_yaml("[12e5a, e5]") == ["12e5a", "e5"]


def test_json_in_other_shapes_is_a_value_error():
    for text in (b"\xff", "{", "1" * 5000, "[1]", "null"):
        with pytest.raises(ValueError):
            parse_object(text)
    assert parse_object('{"a": 1, "a": 2}') == {"a": 2}


def test_quotes_in_errors_are_safe_for_a_terminal():
    error = InputError(f"column {HOSTILE}\nis missing")
    assert "\x1b" not in str(error) and "\n" not in str(error)
    assert str(error).startswith("column ⟨U+001B⟩[31m[red]x[/]") and str(error).endswith("⟨U+D800⟩ is missing")


def test_texts_of_models_are_safe_for_a_terminal():
    opening = (Turn("opening", HOSTILE),)
    shown = transcript(
        Tree(opening, [make_node(HOSTILE, opening, error=HOSTILE), make_node("a", OPENING, scores={"harm": 1.0})])
    )
    assert {char for char in shown if not char.isprintable()} == {"\n"}
    assert shown.count("⟨U+001B⟩[31m[red]x[/]") == 3  # opening, probe, error; the response is the probe in capitals


def test_names_in_tables_are_not_markup():
    figure = {"target": HOSTILE, "figure": f"harmful_share/{HOSTILE}", "value": 0.5, "n": 2, "low": 0.1, "high": 0.9}
    counted = {"failed": 1, "empty_probes": 0, "empty_responses": 0, "unrewarded": 0, "unscored": {HOSTILE: 1}}
    counted |= {"openings_left_out": 0, "openings_shortened": 0}
    arms = ["tester", "baseline", HOSTILE]
    evaluation = Evaluation(
        {"openings": 2, "depth": 1, "harm": HOSTILE, "scorers": [HOSTILE, "b"], "likelihood_under": "target"},
        [{"arm": arm, "target": target} for target in (HOSTILE, "other") for arm in arms],
        [{"arm": arm, "target": HOSTILE, **counted} for arm in arms],
        [{"arm": arm, **figure} for arm in arms],
        [],
    )
    file = io.StringIO()
    show(evaluation, Console(file=file, width=200, highlight=False, force_terminal=True, color_system=None))
    # Styles of the tables' own are all that rich may write.
    shown = file.getvalue().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert "\x1b" not in shown and "[red]x[/]" in shown and "http://a" not in shown.replace("[link=http://a]", "")
