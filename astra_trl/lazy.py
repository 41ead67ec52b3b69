"""Lazy imports for packages with heavy modules (PEP 562)."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping


def lazy_names(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package. `places` maps each name to its module, relative to the package."""

    def import_name(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return import_name


def lazy_imports(package: str) -> tuple[Callable[[str], object], list[str]]:
    """Make the imports under `if TYPE_CHECKING` of a package lazy: return its `__getattr__` and its `__all__`."""
    places = {
        alias.name: str(statement.module).removeprefix(f"{package}.")
        for block in ast.parse(inspect.getsource(sys.modules[package])).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    return lazy_names(package, places), sorted(places)
