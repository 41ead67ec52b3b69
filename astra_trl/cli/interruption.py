"""The end of a program by Ctrl-C or SIGTERM: soon, and in one line that says how to continue. Imports little, so that
it can be installed before anything heavy is imported."""

import multiprocessing
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 1.2  # for the main thread to leave its work; then the program ends with whatever still runs in it
LAUNCHER = "ASTRA_TRL_LAUNCHER"  # variable with the number of the process that launches others and prints the line
RESUME = "--resume_from_checkpoint"


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised in the main thread."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class _Ending:
    # State of the one ending that a process has.
    advice: Callable[[], str] | None = None
    signum: int | None = None
    prefix = ""  # ends the line of a progress bar
    stderr = 2  # becomes a copy once nothing else may be printed
    silent = threading.Event()
    once = threading.Lock()
    sockets: tuple[socket.socket, ...] = ()


@contextmanager
def interruptible(program: bool) -> Iterator[None]:
    """End the program, in one line, at a SIGINT or SIGTERM within the block; without `program` do nothing.

    The handler raises `Interrupted` in the main thread. A thread ends the program if that does not help soon, e.g. in
    a call of native code. Nothing is lost by that: every file of a run is complete or ignored at any moment.
    """
    if not program or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _install()
        yield
    except BaseException as error:
        signum = error.signum if isinstance(error, Interrupted) else _Ending.signum
        if signum is not None:
            _end(signum)
        raise
    finally:  # what is left is the end of the interpreter, where a handler's exception would be a traceback
        for signum in SIGNALS:
            if signal.getsignal(signum) is _raise:
                signal.signal(signum, signal.SIG_DFL)


def advise(advice: Callable[[], str]) -> None:
    """Set the line of the ending, e.g. `"interrupted: ..."`, as a function that is called then."""
    _Ending.advice = advice


def resume_advice(output_dir: str | os.PathLike[str]) -> str:
    """Return the line that says how an interrupted run is resumed."""
    from astra_trl.trainers.checkpoints import last_whole

    folder = Path(output_dir)
    if not (folder / "config.yaml").exists():
        return start_again()
    if (checkpoint := last_whole(folder)) is not None:
        return f"interrupted after {checkpoint.name}: continue with: {users_command(RESUME)}"
    return (
        "interrupted before the first checkpoint: start from the beginning, with the evaluation and the round that "
        f"are complete, with: {users_command(RESUME)}"
    )


def start_again() -> str:
    """Return the line for a command that has nothing to resume from."""
    return f"interrupted: start again with: {users_command()}"


def users_command(flag: str | None = None) -> str:
    """Return the command that the user has typed, with `flag true` at its end, or a description of it if it cannot be
    repeated in a line or holds a token."""
    words = list(sys.orig_argv)
    if Path(sys.argv[0]).name == "astra-trl":
        found = shutil.which("astra-trl")
        words = ["astra-trl" if found == sys.argv[0] else sys.argv[0], *sys.argv[1:]]
    names = [word.partition("=")[0].replace("-", "_") for word in words]
    hidden = "LOCAL_RANK" in os.environ or any("\n" in word for word in words)
    if hidden or any(name.startswith("__") and "token" in name.split("_") for name in names):
        return "the same command" + (f" and {flag} true" if flag else "")
    if flag:
        kept: list[str] = []
        skip = False
        for word, name in zip(words, names, strict=True):
            is_flag = name == flag.replace("-", "_")
            if not (skip or is_flag):
                kept.append(word)
            skip = is_flag and "=" not in word
        words = [*kept, flag, "true"]
    return shlex.join(words)


def _install() -> None:
    reading, writing = _Ending.sockets = socket.socketpair()
    writing.setblocking(False)
    threading.Thread(target=_watch, args=(reading,), name="astra_trl signals", daemon=True).start()
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # a shell lets its background jobs ignore SIGINT
            signal.signal(signum, _raise)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    # A forked worker, e.g. of a data loader, ends without a word, and does not wake the thread of its parent.
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        if signal.getsignal(signum) is _raise:
            signal.signal(signum, signal.SIG_DFL)


def _raise(signum: int, frame: Any) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    _Ending.silent.wait(GRACE_SECONDS)
    while frame is not None:
        # Modules of native code abort the process if an exception comes out of the Python code that they run.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(signum)
        frame = frame.f_back
    raise Interrupted(signum)


def _watch(reading: socket.socket) -> None:
    # Python writes the number of a signal to the socket at once, even while the main thread runs native code.
    signum = 0
    while signum not in SIGNALS or not _is_ours(signum):
        signum = reading.recv(1)[0]
    _Ending.signum = signum
    _silence(signum)
    time.sleep(GRACE_SECONDS)
    _end(signum)


def _is_ours(signum: int) -> bool:
    # Others handle signals too: transformers with enable_jit_checkpoint, and torch while it has launched processes.
    launches = os.environ.get(LAUNCHER) == str(os.getpid())
    return launches or signal.getsignal(signum) in (_raise, signal.SIG_IGN)


def _silence(signum: int) -> None:
    # From now on nobody prints: no progress bar, no worker thread, no warning of native code, no traceback.
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    typed = signum == signal.SIGINT and os.isatty(2)  # the terminal shows ^C
    _Ending.prefix = "\n" if typed or len(bars) else ""
    flush = threading.Thread(target=_flush, daemon=True)  # may wait for the main thread, or for a reader
    flush.start()
    flush.join(0.2)
    with suppress(OSError):
        _Ending.stderr = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    _Ending.silent.set()


def _flush() -> None:
    with suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()


def _end(signum: int) -> NoReturn:
    if not _Ending.once.acquire(blocking=False):
        time.sleep(60)  # the other thread is ending the process
    for child in multiprocessing.active_children():
        with suppress(AssertionError):  # not of this process, which was forked from its parent
            if child.is_alive():
                child.terminate()
    mine = str(os.getpid())
    if os.environ.get(LAUNCHER, mine) == mine and os.environ.get("RANK", "0") == "0":
        try:
            line = (_Ending.advice or start_again)()
        except (ImportError, OSError, ValueError):  # e.g. the folder cannot be read
            line = start_again()
        with suppress(OSError):
            # A pipe that nobody reads must not keep the process alive.
            if select.select([], [_Ending.stderr], [], 0.5)[1]:
                os.write(_Ending.stderr, f"{_Ending.prefix}{line}\n".encode())
    os._exit(128 + signum)  # threads that wait for a silent server would be joined otherwise
