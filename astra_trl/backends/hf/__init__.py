"""Any decoder-only transformers model. Reading order: `dialogue`, `sampling`, `loading`, `masks`, `memory`,
`cache`, `model`, `decoding`, `refeeding`, `session`, `checks`, `backend`. Each imports only modules before it."""

from astra_trl.backends.hf.backend import HFBackend

__all__ = ["HFBackend"]
