"""The file of a report, which replaces nothing but an earlier report."""

from collections.abc import Callable
from pathlib import Path

from astra_trl.errors import InputError
from astra_trl.lines import write_whole
from astra_trl.outputs import refuse_file_of_run, unwritable

MARKDOWN_MARK = "<!-- astra_trl report -->\n"
_MARKS = (MARKDOWN_MARK, "<title>astra_trl report: ")  # one of them is near the beginning of every report
_ADVICE = "name another file with -o"


def write_output(output: str | Path, report: Callable[[], str]) -> Path:
    """Write a report, whole or not at all, and return its path. Raises `InputError` if the path holds something else,
    or cannot be written."""
    path = Path(output)
    try:
        _refuse_other_file(path)
        text = report()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise unwritable(path, error, _ADVICE) from error
    return path


def _refuse_other_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"'{path}' is a folder: name a file with -o, e.g. '{path / 'report.html'}'")
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(1000)
    if not any(mark in start for mark in _MARKS):
        refuse_file_of_run(path, _ADVICE)
        raise InputError(f"'{path}' exists and is not a report of astra_trl: {_ADVICE}, or delete it")
