"""Folders and files that are written to: one writer, nothing of a run written over, and a full disk in one line."""

import json
import os
import subprocess
import sys
from errno import ENOSPC

import pytest

from astra_trl import InputError
from astra_trl.cli.main import main
from astra_trl.evaluation.folder import EvaluationFolder
from astra_trl.outputs import HOLDER, LOCK, explain_full_disk, lock_folder, saving_weights
from astra_trl.report import markdown_report, write_markdown_report, write_report
from astra_trl.rollout.run_folder import RunFolder

SMALL = ["--num_train_epochs", "1", "--trees_per_round", "1", "--eval_openings", "3", "--report_to", "none"]
# Holds the lock of a folder until its input ends.
HELD = """
import sys
from astra_trl.outputs import lock_folder
lock = lock_folder(sys.argv[1], "x")
print(1, flush=True)
sys.stdin.read()
"""


def refusal(argv, capsys):
    """The line that a command ends in."""
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.fixture
def held(tmp_path):
    """A folder that another process writes to, and that process."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"1\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_has_one_writer_and_a_killed_one_leaves_it_free(held):
    folder, process = held
    message = rf"'.*run' is being written by process {process.pid} on .* since .*: wait until it ends, stop it, or x"
    with pytest.raises(InputError, match=message):
        lock_folder(folder, "x")
    process.kill()
    process.wait()
    lock = lock_folder(folder, "x")
    assert json.loads((folder / HOLDER).read_text())["pid"] == os.getpid()
    again = lock_folder(folder, "x")  # of the same process
    again.release()
    lock.release()


@pytest.mark.parametrize("resume", [[], ["--resume_from_checkpoint", "true"]])
def test_a_run_in_a_folder_that_is_being_written_is_refused_before_models_are_loaded(held, resume, capsys):
    folder, process = held
    line = refusal(["sandbox", "run", *SMALL, "--output_dir", str(folder), *resume], capsys)
    assert line.startswith(f"error: '{folder}' is being written by process {process.pid}")
    assert line.endswith("or choose another output_dir\n")
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, HOLDER]


def test_an_evaluation_in_a_folder_that_is_being_written_is_refused(held):
    folder, _ = held
    with pytest.raises(InputError, match="is being written by process"):
        EvaluationFolder(folder, {})
    EvaluationFolder(folder, {}, writes=False)  # other processes of an evaluation only read


def test_a_run_that_comes_to_nothing_leaves_no_folder(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    with pytest.raises(InputError), folder.only_writer():
        raise InputError("no tester")
    assert not folder.path.exists()
    with folder.only_writer():
        folder.config.write_text("a: 1\n")
    assert folder.config.exists()


@pytest.mark.parametrize("name", ["file/run", "file", "n" * 300, "a\0b"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line_before_models_are_loaded(name, command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = ["--world", "embedded", "--output_dir", str(tmp_path / name)]
    argv = ["evaluate", "no/model", *flags] if command == "evaluate" else ["train", *SMALL, *flags]
    line = refusal(argv, capsys)
    assert "cannot be written (" in line and line.endswith("choose another output_dir\n")


def make_run(folder):
    folder.mkdir()
    for name in ("config.yaml", "exchanges.jsonl", "rounds.jsonl"):
        (folder / name).write_text("")
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "README.md").write_text("# a card\n")
    return folder


@pytest.mark.parametrize("name", ["exchanges.jsonl", "config.yaml", "rounds.jsonl", "README.md"])
@pytest.mark.parametrize("kind", ["html", "md"])
def test_a_report_is_not_written_over_a_file_of_a_run(name, kind, tmp_path, capsys):
    run = make_run(tmp_path / "run")
    before = (run / name).read_bytes()
    line = refusal(["report", str(run), "--format", kind, "-o", str(run / name)], capsys)
    assert line == (
        f"error: '{run / name}' is a file of a run or an evaluation, which is never written over: name another file "
        "with -o\n"
    )
    assert (run / name).read_bytes() == before


@pytest.mark.parametrize(("write", "name"), [(write_report, "r.html"), (write_markdown_report, "r.md")])
def test_a_report_replaces_a_report_and_nothing_else(write, name, tmp_path):
    run, output = make_run(tmp_path / "run"), tmp_path / name
    assert write(run, output) == output
    first = output.read_text()
    write(run, output)
    assert output.read_text() == first
    write(run, run / name)  # beside the files of the run
    output.write_text("my notes\n")
    with pytest.raises(InputError, match="exists and is not a report of astra_trl"):
        write(run, output)
    assert output.read_text() == "my notes\n"
    with pytest.raises(InputError, match="is a folder: name a file"):
        write(run, tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write(run, output / "r.html")
    assert first.endswith(markdown_report(run)) == (name == "r.md")


def test_an_evaluation_is_not_written_into_a_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    line = refusal(["evaluate", "no/model", "--world", "embedded", "--output_dir", str(run)], capsys)
    assert line == f"error: '{run}' holds a run, whose files stay as they are: choose another output_dir\n"
    assert not (run / "settings.json").exists() and not (run / LOCK).exists()


def test_prompts_are_not_written_over_a_file_of_a_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    argv = ["prompts", "build", "sandbox", "--force", "-o", str(run / "exchanges.jsonl")]
    assert "is a file of a run or an evaluation, which is never written over" in refusal(argv, capsys)
    assert (run / "exchanges.jsonl").read_text() == ""


def test_a_full_disk_is_one_line(tmp_path):
    message = r"the disk of '.*' is full \(.*No space left.*\): free some space. Continue"
    with pytest.raises(InputError, match=message), explain_full_disk(tmp_path, "Continue"):
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    with pytest.raises(InputError, match="is full"), explain_full_disk(tmp_path, ""), saving_weights():
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    for other in (OSError(5, "I/O error"), RuntimeError("bug")):
        with pytest.raises(type(other)), explain_full_disk(tmp_path, ""), saving_weights():
            raise other


def test_a_disk_that_is_full_in_any_phase_of_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    import astra_trl.evaluation.folder as evaluation_folder

    def full(*args):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(evaluation_folder, "add_lines", full)
    assert main(["sandbox", "run", *SMALL, "--output_dir", str(tmp_path / "run")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: the disk of '{tmp_path / 'run'}' is full")
    assert line.endswith("Then --resume_from_checkpoint true continues the run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_to_a_full_disk_is_one_line():
    command = [sys.executable, "-m", "astra_trl.cli.main", "prompts"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device): free some space\n"


def test_a_world_is_built_whole_or_not_at_all(tmp_path, monkeypatch):
    from astra_trl.sandbox import build, load_world

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/world' cannot be written .*: name another folder"):
        build.build_world(tmp_path / "file" / "world", tester_steps=1, target_steps=1)
    output = tmp_path / "world"

    def full(*args, **kwargs):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(build.GPT2LMHeadModel, "save_pretrained", full)
        with pytest.raises(InputError, match="is full .*Then build the world again"):
            build.build_world(output, tester_steps=1, target_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "world"] and not list(output.iterdir())
    build.build_world(output, tester_steps=1, target_steps=1)
    assert load_world(output).path == output
