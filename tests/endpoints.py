"""A server on this machine that answers as an OpenAI-compatible endpoint, or as badly as a test wants."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import listening


@contextmanager
def endpoint(
    answer: Callable[[dict[str, Any]], tuple[int, Any]], headers: dict[str, str] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the requests it gets; `answer(request)` gives (status, body), the request being headers and
    JSON, and the body JSON, bytes or their parts in time. By default a retry is to come at once."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(
                {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}, **body}
            )
            status, said = answer(requests[-1])
            if not isinstance(said, bytes | Iterator):
                said = json.dumps(said).encode()
            parts = [said] if isinstance(said, bytes) else said
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in (headers or {"retry-after-ms": "1"}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # a client that has had enough
                for part in parts:
                    self.wfile.write(part)

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests


def completion(text: Any, **fields: Any) -> tuple[int, Any]:
    """What `answer` returns for a chat completion."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, **fields}
