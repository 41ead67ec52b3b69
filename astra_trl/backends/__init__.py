"""Backends: models, endpoints and functions that produce text. Heavy ones are imported from their own modules."""

from astra_trl.backends.base import Backend, Sample, SamplingParams, Session, derive_seed
from astra_trl.backends.static import ScriptedBackend

__all__ = ["Backend", "Sample", "SamplingParams", "ScriptedBackend", "Session", "derive_seed"]
