"""Order of the package: a file imports only from rows above its own, and no files import in a circle."""

import ast
from pathlib import Path

import astra_trl

ROOT = Path(astra_trl.__file__).parent
# docs/architecture.md has the same order, with what each holds.
ROWS = [
    [
        "errors",
        "text",
        "callables",
        "lookup",
        "conversation",
        "tree",
        "processes",
        "progress",
        "embedding",
        "telling_words",
        "untrusted",
        "lazy",
        "lines",
        "outputs",
        "links",
        "libraries",
    ],
    ["numbers"],
    ["backends"],
    ["scorers"],
    ["rewards"],
    ["prompts"],
    ["systems"],
    ["rollout"],
    ["evaluation"],
    ["results"],
    ["hub"],
    ["trainers"],
    ["report", "sandbox"],
    ["cli"],
    ["solvers", "harness", "training", "datasets", "ext"],
]
RANK = {name: rank for rank, names in enumerate(ROWS) for name in names}


def modules() -> dict[str, set[str]]:
    """Modules of the package with the modules that each imports, at its top or within functions."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in ROOT.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    found = {}
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        hidden = {  # for type checkers alone
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        imports = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and node not in hidden
                and (node.module or "").startswith("astra_trl.")
            ):
                module = node.module.removeprefix("astra_trl.")
                within = {f"{module}.{alias.name}" for alias in node.names} & files.keys()
                imports |= within or {module}
        found[name] = imports
    return found


def test_every_module_has_a_row_and_imports_from_rows_above():
    found = modules()
    tops = {name.partition(".")[0] for name in found if name != "__init__"}
    assert tops == RANK.keys()
    upwards = [
        f"{name} imports {other}"
        for name, imports in found.items()
        for other in imports
        if name != "__init__" and RANK[other.partition(".")[0]] > RANK[name.partition(".")[0]]
    ]
    assert not upwards


def test_no_modules_import_in_a_circle():
    found = modules()
    reachable: dict[str, set[str]] = {}
    for name in found:
        seen, left = set(), list(found[name])
        while left:
            other = left.pop()
            if other not in seen:
                seen.add(other)
                left += found.get(other, ())
        reachable[name] = seen
    assert not [name for name, others in reachable.items() if name in others]
