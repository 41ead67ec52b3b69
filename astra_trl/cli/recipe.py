"""A recipe: `main({...})` with its defaults. Nothing heavy is imported before a signal can end the program in one
line."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from astra_trl.cli.interruption import advise, interruptible, resume_advice
from astra_trl.errors import InputError, final_line


def main(defaults: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run with `defaults` under the user's YAML file and flags; print one line and exit with 1 on bad input.

    Without `argv`, the flags are those of this process, and a signal ends it in one line."""
    with interruptible(program=argv is None):
        from astra_trl.cli.parse_train import parse
        from astra_trl.cli.train import run
        from astra_trl.outputs import explain_output

        try:
            arguments = parse(defaults, sys.argv[1:] if argv is None else argv)
            advise(lambda: resume_advice(arguments[1].output_dir))
            with explain_output():
                run(*arguments)
        except InputError as error:
            sys.exit(final_line(error))
