"""A Python function as a backend: a product with its own client, an agent, anything that answers."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from astra_trl.backends.api.calls import Answer, Caller, CallFailed
from astra_trl.backends.api.connection import run
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat
from astra_trl.backends.base import SamplingParams
from astra_trl.errors import InputError

Reply = Callable[[Any], Any]


class FunctionBackend(MessagesBackend):
    """The answers of a Python function. A system whose target is a function wraps it in this backend.

    The function gets a conversation in the chat format, `[{"role": "user", "content": "hi"}, ...]`, whose last message
    is the user's, and returns the answer as a text. It can be `async`; otherwise it is called from several threads. It
    should give equal answers to equal conversations, or else a resumed run diverges. If it raises an error, the call
    is retried with exponential backoff; after the last retry the exchange has the error. It sets its own timeouts.

    Args:
        function (`Callable`):
            Messages -> text; with `batched`, a list of conversations -> as many texts.
        batched (`bool`, *optional*, defaults to `False`):
            Whether the function takes several conversations at once.
        batch_size (`int`, *optional*, defaults to `32`):
            Conversations per call if `batched`.
        max_retries (`int`, *optional*, defaults to `3`):
            Attempts after the first one.
        max_characters (`int`, *optional*, defaults to `20_000`):
            Length at which longer answers are cut.
        name (`str`, *optional*):
            Name in reports; defaults to the function's own.
        limits:
            Fields of [`Limits`]: `max_concurrency`, `requests_per_minute`, `max_requests`, `max_failed_share`, ...
    """

    def __init__(
        self,
        function: Reply,
        *,
        batched: bool = False,
        batch_size: int = 32,
        max_retries: int = 3,
        max_characters: int = 20_000,
        name: str | None = None,
        **limits: Any,
    ) -> None:
        if not callable(function):
            raise InputError(f"a FunctionBackend needs a function, got {type(function).__name__}")
        if batch_size < 1 or max_retries < 0:
            raise InputError(
                f"batch_size must be at least 1 and max_retries 0 or more, got {batch_size}, {max_retries}"
            )
        self.name = name or getattr(function, "__qualname__", type(function).__name__)
        caller = Caller(Limiter(Limits(**limits)), max_retries, name=self.name)
        super().__init__(caller, SamplingParams(), max_characters)
        self.function = function
        self.batched = batched
        self.batch_size = batch_size if batched else 1

    @property
    def description(self) -> dict[str, Any]:
        """JSON that identifies the function."""
        return {"backend": "FunctionBackend", "model": self.name}

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        groups = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return self.caller.each(self._attempt, groups, [0] * len(groups))

    def _attempt(self, rows: Sequence[Row]) -> list[Answer]:
        chats = [as_chat(row.messages) for row in rows]
        try:
            result = self.function(chats if self.batched else chats[0])
            if inspect.isawaitable(result):
                result = run(result)
        except InputError:  # its message says how to fix it
            raise
        except Exception as error:  # a user's function can raise anything
            raise CallFailed(" ".join(f"{type(error).__name__}: {error}".split())) from error
        texts = result if self.batched else [result]
        if not isinstance(texts, list | tuple) or len(texts) != len(rows):
            count = len(texts) if isinstance(texts, list | tuple) else type(texts).__name__
            raise CallFailed(f"the function returned {count} for {len(rows)} conversations, not as many texts", False)
        return [
            Answer(text)
            if isinstance(text, str)
            else Answer(error=f"the function returned {type(text).__name__}, not a text")
            for text in texts
        ]
