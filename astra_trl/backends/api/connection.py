"""Calls with a deadline, in one asyncio loop for endpoints and functions, and the causes of failed connections."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Iterator
from functools import cache
from typing import Any, TypeVar

from astra_trl.backends.api.calls import CallFailed

T = TypeVar("T")

MAX_BYTES = 2**26  # of a response body; log-probabilities of a long conversation take some megabytes

_loop_lock = threading.Lock()


def run(call: Awaitable[T], seconds: float | None = None) -> T:
    """Run a call in the loop and return its result.

    After that many seconds it is cancelled, which closes its connection, and `asyncio.TimeoutError` is raised. This
    holds in every phase of a request and whatever arrives: the timeouts of an HTTP client begin anew at every byte.
    """
    return asyncio.run_coroutine_threadsafe(_wait(call, seconds), _loop()).result()


async def _wait(call: Awaitable[T], seconds: float | None) -> T:
    return await asyncio.wait_for(call, seconds)


@cache
def _start_loop() -> asyncio.AbstractEventLoop:
    # One loop for all calls and for good: e.g. open connections belong to the loop that made them.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="astra_trl calls").start()
    return loop


def _loop() -> asyncio.AbstractEventLoop:
    with _loop_lock:  # or two threads at once would start two
        return _start_loop()


async def read_limited(response: Any) -> None:
    """Read the body of a response, before the client does, which would read a body without end."""
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise CallFailed(f"the answer is longer than {MAX_BYTES} bytes")
    response._content = b"".join(chunks)  # httpx keeps it


def explain(error: BaseException) -> tuple[str, bool]:
    """Return the cause of a failed connection, and `True` if no server was there: its address may be wrong."""
    chain = list(_causes(error))
    names, cause = {type(one).__name__ for one in chain}, chain[-1]
    text = next((str(one) for one in reversed(chain) if str(one)), type(cause).__name__)
    if isinstance(cause, socket.gaierror):
        return f"no host of that name is known ({cause.strerror})", True
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused, no server listens there", True
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not valid ({cause.verify_message}; SSL_CERT_FILE can name one to trust)", True
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return f"no TLS connection ({text}), perhaps as its address begins with http://", True
    if "ConnectTimeout" in names:
        return "no connection in time", True
    if "RemoteProtocolError" in names and "illegal" in text:
        return "it does not speak HTTP, perhaps as its address begins with https://", True
    unreachable = "ConnectError" in names and isinstance(cause, OSError) and not isinstance(cause, ConnectionError)
    return text, unreachable and not isinstance(cause, ssl.SSLError)


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        group = getattr(error, "exceptions", None)  # several addresses of one host
        error = group[0] if group else error.__cause__ or error.__context__
