"""What produces text. Heavy imports stay in the modules: `from astra_trl.backends.hf import HFBackend`."""

from astra_trl.backends.base import Backend, Sample, SamplingParams, Session, derive_seed
from astra_trl.backends.scripted import ScriptedBackend

__all__ = ["Backend", "Sample", "SamplingParams", "ScriptedBackend", "Session", "derive_seed"]
