"""Servers on this machine, each at a free port, for as long as a test needs them."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server that answers by the handler; `server_port` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def sending(parts: Callable[[], Iterable[bytes]], port: int = 0) -> Iterator[tuple[int, threading.Event]]:
    """The port of a server that answers any request by these bytes, whatever HTTP says, and an event that is set once
    a client has closed its connection."""
    left, over = threading.Event(), threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(2**16)
            try:
                for part in parts():
                    connection.sendall(part)
                    over.wait(0.02)
                    if over.is_set():
                        return
            except OSError:
                left.set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1], left
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
