"""SIGINT and SIGTERM at random moments: `python -m benchmarks.signals --moments 20 --of run`.

`--of run` is a run of the sandbox, `evaluation` an evaluation of its tester, and `silent` a run against an endpoint
that from a random call on accepts requests and answers none. One in four moments is while Python imports, in a process
of its own. Each end must come soon, be one line without a traceback, and have the exit code of its signal; then the
command in that line is run, and its results must be those of an uninterrupted one, byte for byte except for times.
Prints one line per moment and a summary; exits with 1 if anything is wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from astra_trl.cli import evaluate, train  # noqa: F401  # before processes are forked
from astra_trl.cli.main import main as astra_trl
from astra_trl.sandbox import load_world
from benchmarks.kills import OF_ALGORITHM, SMALL, results_of

MODULE = "astra_trl.cli.main"
MAX_SECONDS = 3.0
STARTING = 4  # one in so many moments is during imports
ANSWERS = ("What a nice day for a walk.", "You stupid fool, I hate that.", "I like it too.", "Tell me more.")


class Silence:
    """An endpoint in a process of its own that answers `limit` more calls."""

    def __init__(self) -> None:
        self.limit, self.waiting = multiprocessing.Value("i", 10**9), multiprocessing.Value("i", 0)
        self.port = multiprocessing.Value("i", 0)
        multiprocessing.Process(target=self._serve, daemon=True).start()
        while not self.port.value:
            time.sleep(0.01)

    def _serve(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.limit.get_lock():
                    outer.limit.value -= 1
                    answers = outer.limit.value >= 0
                if not answers:
                    with outer.waiting.get_lock():
                        outer.waiting.value += 1
                    time.sleep(1e6)
                messages = json.loads(body)["messages"]
                text = ANSWERS[zlib.crc32(json.dumps(messages).encode()) % len(ANSWERS)]
                choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
                answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port.value = server.server_port
        server.serve_forever()


def command_of(what: str, server: Silence | None) -> list[str]:
    """Return the arguments of the command that is interrupted, without its folder."""
    if what == "evaluation":
        return ["evaluate", load_world().tester, "--world", "embedded", "--eval_openings", "60"]
    settings = {**SMALL, **OF_ALGORITHM["dpo"], "disable_tqdm": False}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value).lower())]
    if server is not None:
        target = {"model": "openai:m", "base_url": f"http://127.0.0.1:{server.port.value}/v1"}
        flags += ["--target", json.dumps(target), "--target_sampling", '{"temperature": 0}']
    return ["sandbox", "run", *flags]


def start(argv: Sequence[str], folder: Path) -> int:
    """Fork a process of a command, as if it was started with these arguments, and return its number."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [MODULE, *argv]
    sys.orig_argv = [sys.executable, "-m", MODULE, *argv]
    code: Any = 1
    try:
        code = astra_trl()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def exit_code(process: int) -> int:
    """Return the exit code of a forked process when it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def content(what: str, folder: Path) -> dict[str, Any]:
    """Return the results that must be those of an uninterrupted command."""
    if what != "evaluation":
        return results_of(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".lock")}


def interrupt(
    argv: Sequence[str], folder: Path, rng: random.Random, seconds: float, server: Silence | None
) -> dict[str, Any]:
    """Start a command, end it by a signal at a random moment, and return what happened."""
    signum = rng.choice([signal.SIGINT, signal.SIGTERM])
    starting = rng.randrange(STARTING) == 0
    if starting:
        moment = rng.uniform(0.3, 3.0)
        with (folder.parent / "out.txt").open("wb") as out, (folder.parent / "err.txt").open("wb") as err:
            process = subprocess.Popen([sys.executable, "-m", MODULE, *argv], stdout=out, stderr=err).pid
        time.sleep(moment)
    else:
        moment = rng.uniform(0.0, 1.0 if server else seconds)
        process = start(argv, folder)
        while server and not server.waiting.value and not os.waitpid(process, os.WNOHANG)[0]:
            time.sleep(0.01)
        time.sleep(moment)
    sent = time.perf_counter()
    try:
        os.kill(process, signum)
        code = exit_code(process)
    except (ProcessLookupError, ChildProcessError):
        return {"ended": "before"}
    taken = time.perf_counter() - sent
    printed = (folder.parent / "err.txt").read_text()
    *before, line = printed.splitlines() or [""]
    return {
        "signal": signum.name,
        "phase": "starting" if starting else "working",
        "at": round(moment, 2),
        "seconds": round(taken, 2),
        "code": code,
        "line": line,
        "wrong": [
            name
            for name, is_wrong in {
                "ended by itself": code == 0,
                "slow": taken > MAX_SECONDS,
                "code": code != 128 + signum,
                "line": not line.startswith("interrupted") or not printed.endswith("\n"),
                "another line": any("interrupted" in other for other in before),
                "traceback": "Traceback" in printed or "Exception ignored" in printed,
            }.items()
            if is_wrong
        ],
    }


def interruptions(what: str, moments: int, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """Interrupt a command at random moments, continue it, and yield what happened each time."""
    server = Silence() if what == "silent" else None
    argv = command_of(what, server)

    def arguments(folder: Path) -> list[str]:
        folder.parent.mkdir(parents=True)
        return [*argv, "--output_dir", str(folder)]

    whole = work / "whole" / "run"
    began = time.perf_counter()
    if exit_code(start(arguments(whole), whole)):
        raise RuntimeError((whole.parent / "err.txt").read_text())
    seconds = time.perf_counter() - began
    expected = content(what, whole)
    calls = 10**9 - server.limit.value if server else 0
    rng = random.Random(seed)
    number = 0
    while number < moments:
        folder = work / str(number) / "run"
        if server:
            server.limit.value, server.waiting.value = rng.randrange(calls), 0
        result = interrupt(arguments(folder), folder, rng, seconds, server)
        if result.get("ended") == "before" or result["code"] == 0:
            shutil.rmtree(folder.parent)  # it was over: another moment
            continue
        number += 1
        if server:
            server.limit.value = 10**9
        command = shlex.split(result["line"].rpartition("with: ")[2])
        if command[:3] != [sys.executable, "-m", MODULE] or exit_code(start(command[3:], folder)):
            result["wrong"].append("command")
        else:
            found = content(what, folder)
            result["wrong"] += [name for name in expected if found.get(name) != expected[name]]
        yield {**result, "line": result["line"].partition(" with: ")[0]}
        if not result["wrong"]:
            shutil.rmtree(folder.parent)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--of", default="run", choices=["run", "evaluation", "silent"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps what went wrong; default: a new folder")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OPENAI_API_KEY", "none")
    work = args.folder or Path(tempfile.mkdtemp(prefix="signals-"))
    results = []
    for result in interruptions(args.of, args.moments, args.seed, work):
        results.append(result)
        print(json.dumps(result), flush=True)
    wrong = sum(bool(result["wrong"]) for result in results)
    taken = sorted(result["seconds"] for result in results)
    summary = {"of": args.of, "moments": len(results), "median": taken[len(taken) // 2], "slowest": taken[-1]}
    print(json.dumps({**summary, "wrong": wrong}))
    if wrong:
        print(f"what went wrong is in {work}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
