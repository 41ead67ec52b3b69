"""Who talks and what each side sees. `HFASTSystem` brings torch with it: import it from the package root."""

from astra_trl.systems.base import System

__all__ = ["System"]
