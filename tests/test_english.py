"""Docstrings, comments, messages and documentation are plain technical English."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file for folder in ("astra_trl", "recipes", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Phrases that are old-fashioned, compressed or ambiguous, with what to write instead.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bsee to\b": "check",
    r"\b(go|goes|going|gone) on\b": "continue, resume",
    r"\b(is|are) no [a-z]": "is not a",
    r"\ban? \w+ an? (exchange|round|line|row|text|node|opening|probe)\b": "one ... per ...",
    r"\bof others\b": "untrusted, of other users",
    r"\bwhence\b": "from where",
    r"\bwhere (there|that|it|none|nothing|not|one|no)\b": "if",
    r"\bfrom here on\b": "at or above this",
    r"\btold otherwise\b": "specified otherwise",
    r"\bbehind (all|it|them|that|which|the (first|last|probe|opening|mask|turn))\b": "after",
    r", as [\"'`]": "e.g.",
    r"\bmaybe\b": "possibly",
}
FIRST_WORDS = ("What", "Whether", "How", "Who", "Where", "When", "Which", "Why")
# Participles alone say neither what a function does nor what it returns.
NAMES = {
    "allowed",
    "answered",
    "asked",
    "called",
    "checked",
    "chosen",
    "counted",
    "drawn",
    "found",
    "given",
    "grown",
    "heard",
    "kept",
    "known",
    "left",
    "listed",
    "loaded",
    "made",
    "measured",
    "named",
    "needed",
    "said",
    "seen",
    "sent",
    "shown",
    "sized",
    "spoken",
    "taken",
    "taught",
    "told",
    "used",
    "wanted",
    "written",
}


def functions(tree: ast.AST) -> list[str]:
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("file", [*SOURCES, *PAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_no_phrase_needs_to_be_read_twice(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line.strip()!r}: write {better!r}"
        for number, line in enumerate(lines, 1)
        for phrase, better in PHRASES.items()
        if re.search(phrase, line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_phrase_or_an_imperative_and_functions_are_verbs(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert not [text for text in texts if text.split(" ")[0] in FIRST_WORDS]
    assert not [name for name in functions(tree) if name.strip("_") in NAMES]


def test_no_file_of_the_package_is_longer_than_a_head_can_hold():
    lengths = {
        file: len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES if "astra_trl" in file.parts
    }
    assert not {str(file.relative_to(ROOT)): count for file, count in lengths.items() if count > 300}
