"""Systems: tester, target and baseline, and what each side sees. Those that import torch are loaded on first use."""

from typing import TYPE_CHECKING, Any

from astra_trl.errors import InputError
from astra_trl.lazy import lazy_imports
from astra_trl.lookup import find

if TYPE_CHECKING:
    from astra_trl.systems.astprompter import ASTPrompterSystem as ASTPrompterSystem
    from astra_trl.systems.astprompter import HFASTSystem as HFASTSystem
    from astra_trl.systems.base import System as System
    from astra_trl.systems.crt import CRTSystem as CRTSystem
    from astra_trl.systems.goals import Goal as Goal
    from astra_trl.systems.malibu import MalibuSystem as MalibuSystem
    from astra_trl.systems.perez import PerezSystem as PerezSystem

# A new system is a file in this package and a line here.
SYSTEMS = {
    "astprompter": "astra_trl.systems.astprompter.HFASTSystem",
    "crt": "astra_trl.systems.crt.CRTSystem",
    "malibu": "astra_trl.systems.malibu.MalibuSystem",
    "perez": "astra_trl.systems.perez.PerezSystem",
}

__getattr__, __all__ = lazy_imports(__name__)
__all__ += ["SYSTEMS", "system_class"]


def system_class(name: str) -> Any:
    """Return the class of a system: one of `SYSTEMS`, or by dotted path one of the user's own."""
    found = find("system", name, SYSTEMS)
    if not (isinstance(found, type) and hasattr(found, "default_settings")):
        raise InputError(f"system {name!r} is not a subclass of astra_trl.System")
    return found
