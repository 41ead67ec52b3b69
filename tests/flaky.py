"""`transformers serve` on this machine, and a network in front of it that loses, delays and spoils what passes."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from loopback import listening
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_trl.sandbox import load_world

# Of a chat whose every message is a line, which is what the sandbox's target has learned.
LINES = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
FAULTS = ("drop", "delay", "429", "500", "cut", "cut within")


def save_chat_target(folder: Path) -> Path:
    """The sandbox's target as a chat model."""
    world = load_world()
    AutoModelForCausalLM.from_pretrained(world.target).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(world.target)
    tokenizer.chat_template = LINES
    tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Served:
    """A process of `transformers serve` for one model, which may be killed and started again.

    Args:
        model (`Path`): Its folder.
        log (`Path`): Where what it prints is written.
    """

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log, self.port = model, log, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
        command += [str(self.model), "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        for _ in range(1200):
            try:
                http.client.HTTPConnection("127.0.0.1", self.port, timeout=5).request("GET", "/health")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise TimeoutError("transformers serve did not start")

    def kill(self) -> None:
        """Ends it without notice."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def away(self, seconds: float) -> threading.Thread:
        """Kills it now and has it back at the same port so many seconds later."""
        self.kill()

        def back() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=back)
        thread.start()
        return thread


@contextmanager
def served(model: Path, log: Path) -> Iterator[Served]:
    """The server, until the context ends."""
    server = Served(model, log)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def flaky(upstream: str, share: float = 0.2) -> Iterator[tuple[str, Counter[str]]]:
    """The address of a proxy that spoils a share of the calls, and how often it did what.

    One call in `1 / share`, each fault in its turn.
    """
    host, _, path = upstream.removeprefix("http://").partition("/")
    every = round(1 / share)
    done: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                turn, last = divmod(sum(done.values()), every)
                fault = FAULTS[turn % len(FAULTS)] if last == every - 1 else "passed"
                done[fault] += 1
            if fault == "drop":
                return self.end()
            if fault in ("429", "500"):
                return self.answer(int(fault), b'{"error": {"message": "not now"}}', {"retry-after-ms": "50"})
            if fault == "delay":
                time.sleep(0.3)
            try:
                status, data = self.passed_on(body)
            except (OSError, http.client.HTTPException):  # the server is away
                return self.end()
            if fault == "cut":  # less than was announced
                return self.answer(status, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self.answer(status, data[: len(data) // 2] if fault == "cut within" else data)

        def passed_on(self, body: bytes) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()

        def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in {"Content-Length": str(len(data)), "Connection": "close", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True

        def end(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/{path}", done
