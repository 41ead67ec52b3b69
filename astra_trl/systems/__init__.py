"""Systems: tester, target and baseline, and what each side sees. Those that import torch are loaded on first use."""

from typing import TYPE_CHECKING, Any

from astra_trl.errors import InputError
from astra_trl.lazy import lazy_names
from astra_trl.lookup import find

if TYPE_CHECKING:
    from astra_trl.systems.astprompter import ASTPrompterSystem, HFASTSystem
    from astra_trl.systems.base import System
    from astra_trl.systems.crt import CRTSystem
    from astra_trl.systems.goals import Goal
    from astra_trl.systems.malibu import MalibuSystem
    from astra_trl.systems.perez import PerezSystem

# A new system is a file in this package and a line here.
SYSTEMS = {
    "astprompter": "astra_trl.systems.astprompter.HFASTSystem",
    "crt": "astra_trl.systems.crt.CRTSystem",
    "malibu": "astra_trl.systems.malibu.MalibuSystem",
    "perez": "astra_trl.systems.perez.PerezSystem",
}

_PLACES = {
    "ASTPrompterSystem": "astprompter",
    "CRTSystem": "crt",
    "Goal": "goals",
    "HFASTSystem": "astprompter",
    "MalibuSystem": "malibu",
    "PerezSystem": "perez",
    "System": "base",
}

__all__ = [
    "SYSTEMS",
    "ASTPrompterSystem",
    "CRTSystem",
    "Goal",
    "HFASTSystem",
    "MalibuSystem",
    "PerezSystem",
    "System",
    "system_class",
]

__getattr__ = lazy_names(__name__, _PLACES)


def system_class(name: str) -> Any:
    """Return the class of a system: one of `SYSTEMS`, or by dotted path one of the user's own."""
    found = find("system", name, SYSTEMS)
    if not (isinstance(found, type) and hasattr(found, "default_settings")):
        raise InputError(f"system {name!r} is not a subclass of astra_trl.System")
    return found
