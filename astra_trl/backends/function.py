"""A Python function as a backend: a product with its own client, an agent, anything that answers."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from astra_trl.backends.api.calls import Answer, Caller, CallFailed
from astra_trl.backends.api.connection import run
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.api.messages import MessagesBackend, Row, as_chat
from astra_trl.backends.base import SamplingParams
from astra_trl.callables import check_callable, describe, describe_error
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers

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
        self.name = str(name or getattr(function, "__qualname__", type(function).__name__))
        argument = "conversations" if batched else "messages"
        check_callable("the target's function", function, argument, allow_async=True)
        require_numbers(batch_size=batch_size, max_retries=max_retries)
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
        result = self._call(chats if self.batched else chats[0])
        texts = result if self.batched else [result]
        if not isinstance(texts, list | tuple) or len(texts) != len(rows):
            given = f"{len(texts)} texts" if isinstance(texts, list | tuple) else describe(texts)
            raise CallFailed(f"the function {self.name!r} returned {given}: return a list of {len(rows)} texts", False)
        return [
            Answer(text)
            if isinstance(text, str)
            else Answer(error=f"the function {self.name!r} returned {describe(text)}: return a text")
            for text in texts
        ]

    def _call(self, argument: Any) -> Any:
        try:
            result = self.function(argument)
            if inspect.isawaitable(result):
                result = run(self._await(result))
            return result
        except InputError:  # its message says how to fix it
            raise
        except SystemExit as error:  # not to be retried, and not the end of a run that is finished
            raise self._exit_error(error) from error
        except Exception as error:  # a user's function can raise anything
            raise CallFailed(f"the function {self.name!r} {describe_error(error)}") from error

    async def _await(self, result: Awaitable[Any]) -> Any:
        try:
            return await result
        except SystemExit as error:  # it would end the loop, and its caller would wait for ever
            raise self._exit_error(error) from error

    def _exit_error(self, error: SystemExit) -> InputError:
        return InputError(f"the function {self.name!r} {describe_error(error)}")
