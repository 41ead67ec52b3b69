"""Ctrl-C and SIGTERM: a program ends in one line that says how to continue, whatever it is doing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from astra_trl.cli import interruption
from astra_trl.cli.interruption import RESUME, interruptible, resume_advice, start_again, users_command
from astra_trl.trainers.checkpoints import SEAL

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def sigint():
    """SIGINT is not ignored by the programs, as it is by the background jobs of a shell, which may run these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PROGRAM = """\
import os, signal, sys, threading, time
from astra_trl.cli.interruption import advise, interruptible
from astra_trl.cli import interruption

def ready():
    print("ready", flush=True)

with interruptible(program=True):
    advise(lambda: "interrupted: the line")
"""
# Bodies of a program, each of which would not end by itself, or not in one line.
BODIES = {
    "sleeps": "ready(); time.sleep(60)",
    "waits for a lock": "lock = threading.Lock(); lock.acquire(); ready(); lock.acquire()",
    "is in native code that no signal interrupts": """
        import ctypes
        mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        ready()
        libc.pthread_mutex_lock(mutex)
    """,
    "catches everything": """
        ready()
        while True:
            try:
                time.sleep(60)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
    """,
    "has a thread that is not a daemon": """
        threading.Thread(target=time.sleep, args=(60,)).start()
        ready()
        time.sleep(60)
    """,
    "has a thread that prints": """
        def noise():
            while True:
                print("noise", file=sys.stderr)
        threading.Thread(target=noise).start()
        ready()
        time.sleep(60)
    """,
    "fails while it is left": """
        try:
            ready()
            time.sleep(60)
        finally:
            raise ValueError("a bug")
    """,
    "raises in a finalizer": """
        class Late:
            def __del__(self):
                raise ValueError("a bug")
        late = Late()
        ready()
        time.sleep(60)
    """,
    "has nothing to say": "advise(lambda: int('x')); ready(); time.sleep(60)",
}


def started(body: str, **kwargs) -> subprocess.Popen:
    """A program that is ready for a signal."""
    code = PROGRAM + textwrap.indent(textwrap.dedent(body), "    ")
    kwargs |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONUNBUFFERED": ""}, **kwargs)
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen, signum: int) -> tuple[int, list[str]]:
    """The exit code and the lines of a program after a signal."""
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert err.endswith("\n")
    return process.returncode, err.splitlines()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_in_one_line(body, signum):
    code, lines = ended(started(BODIES[body]), signum)
    line = "interrupted: start again with: the same command" if "nothing to say" in body else "interrupted: the line"
    assert code == 128 + signum
    assert [other for other in lines if other != "noise"] == [line] and lines[-1] == line


def test_nothing_is_raised_into_an_import(tmp_path):
    """Native modules abort the process if the Python code that they run at their import raises."""
    source = "import os, time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\nfinally:\n    os.abort()\n"
    (tmp_path / "native.py").write_text(source)
    assert ended(started("import native", cwd=tmp_path), signal.SIGINT) == (130, ["interrupted: the line"])


def test_the_line_is_below_a_progress_bar():
    body = "from tqdm.auto import tqdm; bar = tqdm(total=9, leave=False); ready(); time.sleep(60)"
    code, lines = ended(started(body), signal.SIGINT)
    assert code == 130 and "0/9" in lines[-2] and lines[-1] == "interrupted: the line"


def test_what_was_printed_before_is_not_lost():
    body = "ready(); sys.stdin.read(1); sys.stdout.write('figures'); print('ok', file=sys.stderr); time.sleep(60)"
    process = started(body, stdin=subprocess.PIPE)
    process.stdin.write("x")  # only now, so that reading the first line has not read more
    process.stdin.flush()
    assert process.stderr.readline() == "ok\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out == "figures"


def test_pipes_that_nobody_reads_do_not_keep_a_program_alive():
    body = "ready(); [sys.stderr.write('x' * 999) and sys.stdout.write('x' * 999) for _ in range(9999)]"
    process = started(body)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.stdout.close()
    process.stderr.close()


def test_a_forked_process_ends_silently_and_does_not_end_its_parent():
    body = """
        child = os.fork()
        if child == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.2)
        print("ready", ended, flush=True)
    """
    code = PROGRAM + textwrap.indent(textwrap.dedent(body), "    ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (f"ready -{signal.SIGTERM.value}\n", "", 0)


def test_handlers_of_others_and_ignored_signals_are_left_alone():
    body = """
        interruption.GRACE_SECONDS = 0.0
        caught = []
        signal.signal(signal.SIGTERM, lambda *given: caught.append(1))  # e.g. transformers' enable_jit_checkpoint
        ready()
        while not caught:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        sys.exit(7)
    """
    ignoring = started(body, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    ignoring.send_signal(signal.SIGTERM)
    out, err = ignoring.communicate(timeout=60)
    assert (ignoring.returncode, out, err) == (7, "", "")


def test_python_code_keeps_its_own_handlers():
    before = [signal.getsignal(signum) for signum in interruption.SIGNALS]
    with interruptible(program=False):
        assert [signal.getsignal(signum) for signum in interruption.SIGNALS] == before
    done = []
    thread = threading.Thread(
        target=lambda: [done.append(1) for _ in [0] if interruptible(program=True).__enter__() is None]
    )
    thread.start()
    thread.join()
    assert done == [1] and [signal.getsignal(signum) for signum in interruption.SIGNALS] == before


@pytest.mark.parametrize(
    ("argv", "original", "flag", "command"),
    [
        (["r.py", "--seed", "1"], ["python", "r.py", "--seed", "1"], None, "python r.py --seed 1"),
        (["r.py"], ["python", "r.py"], RESUME, f"python r.py {RESUME} true"),
        (
            ["r.py", RESUME, "a/b", "-x"],
            ["python", "r.py", RESUME, "a/b", "-x"],
            RESUME,
            f"python r.py -x {RESUME} true",
        ),
        (
            ["r.py", "--resume-from-checkpoint=false"],
            ["python", "r.py", "--resume-from-checkpoint=false"],
            RESUME,
            f"python r.py {RESUME} true",
        ),
        (
            ["r.py", "--reward", '{"a": 1}'],
            ["python", "r.py", "--reward", '{"a": 1}'],
            None,
            "python r.py --reward '{\"a\": 1}'",
        ),
        (
            ["m.py", "train"],
            ["python", "-m", "astra_trl.cli.main", "train"],
            None,
            "python -m astra_trl.cli.main train",
        ),
        (["/x/bin/astra-trl", "train"], ["python", "/x/bin/astra-trl", "train"], None, "/x/bin/astra-trl train"),
        (["r.py", "--hub_token", "hf_s"], ["python", "r.py", "--hub_token", "hf_s"], None, "the same command"),
        (
            ["r.py", "--hub-token=hf_s"],
            ["python", "r.py", "--hub-token=hf_s"],
            RESUME,
            f"the same command and {RESUME} true",
        ),
        (["-c"], ["python", "-c", "a\nb"], RESUME, f"the same command and {RESUME} true"),
    ],
)
def test_the_command_is_the_users_own(argv, original, flag, command, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert users_command(flag) == command
    monkeypatch.setenv("LOCAL_RANK", "0")  # started by accelerate: the user's own command is another
    assert users_command(flag).startswith("the same command")


def test_the_line_of_a_run_says_truly_where_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["r.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "r.py"])
    assert resume_advice(tmp_path) == start_again() == "interrupted: start again with: python r.py"
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    again = f"with: python r.py {RESUME} true"
    assert resume_advice(tmp_path) == (
        "interrupted before the first checkpoint: start from the beginning, with the evaluation and the round that "
        f"are complete, {again}"
    )
    for step, sealed in ((3, True), (7, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if sealed:
            (tmp_path / f"checkpoint-{step}" / SEAL).write_text('{"files": {}}')
    assert resume_advice(tmp_path) == f"interrupted after checkpoint-3: continue {again}"


def test_a_recipe_is_ready_for_a_signal_before_it_imports_anything_heavy():
    code = "import sys, astra_trl.cli.main, astra_trl.cli.recipe, astra_trl.sandbox.defaults; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "trl", "datasets", "accelerate", "numpy"} & set(done.stdout.split())
    for recipe in (ROOT / "recipes").glob("*.py"):
        imports = [line for line in recipe.read_text().splitlines() if line.startswith(("from ", "import "))]
        names = {line.split()[1] for line in imports} - {"math", "sys", "pathlib", "typing", "astra_trl"}
        light = {
            "astra_trl.cli.recipe",
            "astra_trl.cli.interruption",
            "astra_trl.sandbox",
            "astra_trl.sandbox.defaults",
        }
        assert names <= light, recipe


# -- whole commands

SMALL = ["--use_cpu", "true", "--bf16", "false", "--num_train_epochs", "3", "--eval_openings", "10"]
SMALL += ["--trees_per_round", "2", "--tree_width", "3", "--tree_depth", "2", "--pairs_per_round", "16"]


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "astra_trl.cli.main", *argv]


def wait_for(file: Path, process: subprocess.Popen) -> None:
    while not file.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["run", "evaluation", "silent"])
def test_signals_at_random_moments_end_in_one_line_and_the_command_in_it_continues(of, tmp_path):
    benchmark = [sys.executable, "-m", "benchmarks.signals", "--of", of, "--moments", "3"]
    done = subprocess.run([*benchmark, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    *results, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert summary["moments"] == 3, done.stderr
    assert [set(result["wrong"]) - {"slow"} for result in results] == [set()] * 3  # how soon depends on the machine


@pytest.mark.slow
def test_a_target_that_sleeps_does_not_hold_up_the_end(tmp_path):
    (tmp_path / "asleep.py").write_text(
        "import pathlib, time\n\ndef answer(messages):\n    pathlib.Path('called').touch()\n    time.sleep(600)\n"
    )
    argv = ["sandbox", "run", *SMALL, "--target", "asleep.answer", "--output_dir", "run"]
    process = subprocess.Popen(command(*argv), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "called", process)
    code, lines = ended(process, signal.SIGINT)
    assert code == 130
    assert lines[-1].endswith(f"with: {shlex.join(command(*argv))} {RESUME} true")
    assert sum("interrupted" in line for line in lines) == 1 and "Traceback" not in " ".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_launched_processes_end_together_in_one_line_that_continues_the_run(signum, tmp_path):
    argv = ["sandbox", "run", *SMALL, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "run")]
    argv += ["--num_processes", "2", "--main_process_port", "0"]
    process = subprocess.Popen(command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "rounds.jsonl", process)
    launched = psutil.Process(process.pid).children(recursive=True)
    code, lines = ended(process, signum)
    assert code == 128 + signum
    assert psutil.wait_procs(launched, timeout=60)[1] == []
    assert sum("interrupted" in line for line in lines) == 1 and "Traceback" not in " ".join(lines)
    *_, continued = lines[-1].partition("with: ")
    done = subprocess.run(shlex.split(continued), capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["rounds"] == 3
