"""The column of a table that holds openings."""

from collections.abc import Iterable, Sequence
from typing import Any

from astra_trl.errors import InputError
from astra_trl.prompts.rows import kind_of, parse_written

Table = dict[str, list] | list  # columns by name, or rows of a source without columns

# Usual names of a column of openings, best first.
COLUMNS = ("opening", "prompt", "text", "question", "messages", "conversations", "conversation", "turns")
# Keys of objects that hold an opening, e.g. in the prompts of garak and of RealToxicityPrompts.
KEYS = ("turns", "messages", "conversations", "conversation", "text")


def as_table(rows: list) -> Table:
    """Return the columns of rows that are objects, and other rows as they are."""
    if not any(isinstance(row, dict) for row in rows):
        return rows
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {kind_of(row)} among objects: fix or remove it")
    names = dict.fromkeys(name for row in rows for name in row)
    return {str(name): [row.get(name) for row in rows] for name in names}  # YAML has names that are numbers


def _holds_text(rows: Iterable[object]) -> bool:
    """`True` if there is text in one of the rows, at any depth. Letters tell it from ids and figures."""
    values = list(rows)
    while values:
        value = values.pop()
        if isinstance(value, str) and any(map(str.isalpha, value)):
            return True
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
    return False


def _choose(
    names: Sequence[str], texts: Sequence[str], column: str | None, source: object, option: str
) -> tuple[str, list[str]]:
    """Return the name of the column of openings, and the keys of its objects that `column` names after dots.

    Without `column`, the column is the only one, or the first in `texts` with a usual name, or the only one in
    `texts`, which has those that may hold text. Raises `InputError` if there is none, or more than one.
    """
    if column is not None:
        name, *keys = [column] if column in names else column.split(".")
        if name not in names:
            raise InputError(f"'{source}' has no column '{column}': give {option} one of {', '.join(names)}")
        return name, keys
    by_name = {name.casefold(): name for name in reversed(names)}
    usual = [by_name[name] for name in COLUMNS if name in by_name]
    messages = [by_name[name] for name in ("text", "content", "value") if name in by_name]
    if messages and usual in ([], messages[:1]) and {"role", "from"} & by_name.keys():
        raise InputError(
            f"'{source}' has one message per row: make a conversation one row, with a list of its messages, or give "
            f"{option} {messages[0]} if each message is an opening"
        )
    # A column of a usual name that holds no text may still be the one: the other text may be an id.
    chosen = names if len(names) == 1 else [name for name in usual if name in texts] if usual else texts
    if not chosen or (len(chosen) > 1 and not usual):
        raise InputError(f"which column of '{source}' holds the openings? Give {option} one of {', '.join(names)}")
    return chosen[0], []


def _open_objects(rows: list, name: str, keys: Sequence[str], source: object, option: str) -> tuple[list, str]:
    """Return the texts and conversations of a column, which may lie within objects, and their place as text."""
    path, keys = name, list(keys)
    while True:
        first = next((row for row in rows if row not in (None, "")), None)
        if isinstance(first, str) and first.startswith("{") and (keys or _names_text(first)):
            rows = _parse(rows, path, source)
            first = next(row for row in rows if row not in (None, ""))
        if not isinstance(first, dict):
            break
        within = dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)
        key = keys.pop(0) if keys else next((key for key in KEYS if key in first), None)
        if key not in within:
            raise InputError(
                f"column '{path}' of '{source}' holds objects: give {option} one of "
                + ", ".join(f"{path}.{key}" for key in within)
            )
        for number, row in enumerate(rows, start=1):
            if not (row in (None, "") or isinstance(row, dict)):
                raise InputError(
                    f"'{source}', row {number} of column '{path}' is {kind_of(row)}, not an object: fix it"
                )
        rows, path = [row.get(key) if isinstance(row, dict) else row for row in rows], f"{path}.{key}"
    if keys:
        raise InputError(f"'{source}' has no column '{path}.{keys[0]}': '{path}' holds no objects")
    if path.casefold().rpartition(".")[2] != "turns":
        return rows, f"column '{path}'"
    # A list of texts is what the user says at each turn. The answers between them are the target's own, so that only
    # the first is an opening.
    rows = _parse(rows, path, source) if str(rows[:1]).startswith(("['[", '["[')) else rows
    firsts = [row[0] if isinstance(row, list) and row and isinstance(row[0], str) else row for row in rows]
    return firsts, f"column '{path}'" + ("" if firsts == rows else ", the first text of each row")


def _names_text(text: str) -> bool:
    # `True` for an object, written out in a cell, that has one of `KEYS`.
    try:
        value = parse_written(text)
    except ValueError:
        return False
    return isinstance(value, dict) and any(map(value.__contains__, KEYS))


def _parse(rows: list, path: str, source: object) -> list:
    parsed = []
    for number, row in enumerate(rows, start=1):
        try:
            parsed.append(parse_written(row) if isinstance(row, str) and row else row)
        except ValueError as error:
            raise InputError(f"'{source}', row {number} of column '{path}' {error}: fix or remove it") from None
    return parsed


def rows_of_table(table: Table, column: str | None, source: object, option: str) -> tuple[list, str | None]:
    """Return the rows of the column of openings, and that column as text, or `None` for a source without columns."""
    if isinstance(table, list):
        if column is not None and table:
            raise InputError(f"'{source}' has no columns: leave {option.rstrip('=')} out")
        return table, None
    if not any(table.values()):
        return [], None
    texts = [name for name, rows in table.items() if _holds_text(rows)]
    name, keys = _choose(list(table), texts, column, source, option)
    return _open_objects(table[name], name, keys, source, option)


def rows_of_dataset(dataset: Any, column: str | None, source: object, option: str) -> tuple[list, str | None]:
    """Return the same for a `datasets.Dataset`."""
    texts = [name for name, feature in dataset.features.items() if _may_hold_text(feature)]
    name, keys = _choose(dataset.column_names, texts, column, source, option)
    return _open_objects(list(dataset[name]), name, keys, source, option)


def _may_hold_text(feature: Any) -> bool:
    if isinstance(feature, dict | list):
        return any(map(_may_hold_text, feature.values() if isinstance(feature, dict) else feature))
    if hasattr(feature, "feature"):  # of a list
        return _may_hold_text(feature.feature)
    return "string" in str(getattr(feature, "dtype", ""))
