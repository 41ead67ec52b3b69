"""Who talks and what each side sees. Most bring torch with them, so all are imported when first asked for."""

from typing import TYPE_CHECKING

from astra_trl.lazy import lazy_names

if TYPE_CHECKING:
    from astra_trl.systems.astprompter import ASTPrompterSystem, HFASTSystem
    from astra_trl.systems.base import System
    from astra_trl.systems.crt import CRTSystem
    from astra_trl.systems.goals import Goal
    from astra_trl.systems.malibu import MalibuSystem
    from astra_trl.systems.perez import PerezSystem

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
    "ASTPrompterSystem",
    "CRTSystem",
    "Goal",
    "HFASTSystem",
    "MalibuSystem",
    "PerezSystem",
    "System",
]

__getattr__ = lazy_names(__name__, _PLACES)
