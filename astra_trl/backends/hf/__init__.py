"""Any decoder-only transformers model. Read: `dialogue`, `sampling`, `cache`, `scoring`, `decoding`,
`refeeding`, `session`, `backend`."""

from astra_trl.backends.hf.backend import HFBackend

__all__ = ["HFBackend"]
