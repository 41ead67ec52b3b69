"""Commands in several processes, started as by `accelerate launch`."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import psutil
from accelerate.commands.config import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import patch_environment

from astra_trl.cli.interruption import LAUNCHER, SIGNALS, Interrupted
from astra_trl.errors import InputError

# Flags that say which script is started.
NOT_TAKEN = ("-h", "--help", "-m", "--module", "--no_python", "--no-python")
CONFIG = "--accelerate_config"


def split_launch_flags(argv: Sequence[str], parser: Any) -> tuple[list[str], list[str]]:
    """Split flags of `accelerate launch`, with their values, from all others; as in TRL, `parser` has precedence."""
    values = {CONFIG: 1} | {
        option: action.nargs != 0
        for action in launch_command_parser()._actions
        for option in action.option_strings
        if option.startswith("--") and option not in (*NOT_TAKEN, *parser._option_string_actions)
    }
    launch_flags: list[str] = []
    rest: list[str] = []
    taken = 0  # number of following parts that belong to the last launch flag
    for part in argv:
        name, equals, _ = part.partition("=")
        if taken or name in values:
            launch_flags.append(part)
            taken = 0 if taken or equals else values[name]
        else:
            rest.append(part)
    return launch_flags, rest


def launch(launch_flags: Sequence[str], command: Sequence[str]) -> int:
    """Run a module with its arguments in the processes that the flags ask for, and return the exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.error = lambda message: parser.exit(2, f"error: {message} (see accelerate launch --help)\n")
    args = parser.parse_args([*_with_config_file(launch_flags), "--module", *command])
    configured = (
        args.config_file is not None or Path(default_config_file).is_file() or args.mpirun_hostfile is not None
    )
    if (args.num_processes or 1) > 1 and not configured:
        # accelerate starts a single process if it sees no second GPU: several on a CPU need MPI.
        if args.cpu:
            raise InputError("--cpu with several processes needs MPI: give --use_cpu true instead")
        args.multi_gpu = not (args.tpu or args.use_deepspeed or args.use_fsdp or args.use_megatron_lm)
    try:
        with patch_environment(**{LAUNCHER: os.getpid()}):
            launch_command(args)
    except ChildFailedError as error:  # each process has printed its error
        return _exit_code(error.get_first_failure()[1].exitcode)
    except CalledProcessError as error:
        return _exit_code(error.returncode)
    except SignalException as error:
        raise Interrupted(error.sigval) from error
    except Interrupted:
        for child in psutil.Process().children():
            child.terminate()
        raise
    except ValueError as error:  # of flags that do not go together
        raise InputError(" ".join(str(error).split())) from error
    return 0


def _exit_code(of_process: int) -> int:
    if of_process - 128 in SIGNALS:  # it was sent to that process alone
        raise Interrupted(of_process - 128)
    return 1


def _with_config_file(launch_flags: Sequence[str]) -> list[str]:
    # accelerate's own flag in place of TRL's, which takes names too.
    flags = [part for flag in launch_flags for part in (flag.split("=", 1) if flag.startswith(CONFIG) else [flag])]
    if CONFIG not in flags:
        return flags
    at = flags.index(CONFIG)
    if at + 1 == len(flags):
        raise InputError(f"{CONFIG} has no value: give a file, or a name")
    given, named = flags[at + 1], files("trl.accelerate_configs")
    known = {entry.name.removesuffix(".yaml"): entry for entry in named.iterdir() if entry.name.endswith(".yaml")}
    if not Path(given).is_file() and given not in known:
        raise InputError(f"{CONFIG} {given!r} is not a file: give one, or a name of {', '.join(sorted(known))}")
    path = given if Path(given).is_file() else str(known[given])
    return [*flags[:at], "--config_file", path, *flags[at + 2 :]]
