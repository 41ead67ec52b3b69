"""A backend that is a Python function: a product behind its own client, an agent, anything that answers."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

from astra_trl.backends.api.calls import Answer, Caller, CallFailed
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat
from astra_trl.backends.base import SamplingParams
from astra_trl.errors import InputError

Reply = Callable[[Any], Any]

_first = threading.Lock()


class FunctionBackend(MessagesBackend):
    """Says what a function returns. One that is given as a system's target is wrapped in this.

    The function gets a conversation as a chat's messages, `[{"role": "user", "content": "hi"}, ...]`, the last of them
    the user's, and returns the answer as a text. It may be `async`; else it is called from several threads. It
    should answer equal conversations equally, or a run that is resumed goes another way. Where it raises, the call has
    failed: it is called again after a pause, and at last the exchange has the error. It brings timeouts of its own.

    Args:
        function (`Callable`):
            Messages -> text; or with `batched` a list of conversations -> as many texts.
        batched (`bool`, *optional*, defaults to `False`):
            Whether it takes several conversations at once.
        batch_size (`int`, *optional*, defaults to `32`):
            Conversations that it takes at once then.
        max_retries (`int`, *optional*, defaults to `3`):
            Attempts after the first one.
        max_characters (`int`, *optional*, defaults to `20_000`):
            Where a longer answer is cut.
        name (`str`, *optional*):
            What it is called in reports; defaults to the function's own.
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
        super().__init__(Caller(Limiter(Limits(**limits)), max_retries), SamplingParams(), max_characters)
        self.function = function
        self.batched = batched
        self.batch_size = batch_size if batched else 1
        self.name = name or getattr(function, "__qualname__", type(function).__name__)

    @property
    def description(self) -> dict[str, Any]:
        """What tells this function from others, as JSON."""
        return {"backend": "FunctionBackend", "model": self.name}

    def said(self, rows: Sequence[Row]) -> list[Answer]:
        groups = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return self.caller.each(self._attempt, groups, [0] * len(groups))

    def _attempt(self, rows: Sequence[Row]) -> list[Answer]:
        chats = [as_chat(row.messages) for row in rows]
        try:
            returned = self.function(chats if self.batched else chats[0])
            if inspect.isawaitable(returned):
                returned = asyncio.run_coroutine_threadsafe(_awaited(returned), _loop()).result()
        except InputError:  # what it says is to be mended
            raise
        except Exception as error:  # somebody else's function may raise anything
            raise CallFailed(" ".join(f"{type(error).__name__}: {error}".split())) from error
        texts = returned if self.batched else [returned]
        if not isinstance(texts, list | tuple) or len(texts) != len(rows):
            count = len(texts) if isinstance(texts, list | tuple) else type(texts).__name__
            raise CallFailed(f"the function returned {count} for {len(rows)} conversations, not as many texts", False)
        return [
            Answer(text)
            if isinstance(text, str)
            else Answer(error=f"the function returned {type(text).__name__}, not a text")
            for text in texts
        ]


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    # One for all and for good: what such functions hold, as connections, belongs to the loop it was made in.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="astra_trl functions").start()
    return loop


def _loop() -> asyncio.AbstractEventLoop:
    with _first:  # two that ask at once would make two
        return _running_loop()
