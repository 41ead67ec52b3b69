"""Lazy imports for packages with heavy modules (PEP 562)."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable


def lazy_imports(package: str) -> tuple[Callable[[str], object], list[str]]:
    """Make the imports under `if TYPE_CHECKING` of a package lazy: return its `__getattr__` and its `__all__`."""
    modules = {
        alias.name: str(statement.module)
        for block in ast.parse(inspect.getsource(sys.modules[package])).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    def import_name(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return import_name, sorted(modules)
