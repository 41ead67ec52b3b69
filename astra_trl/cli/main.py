"""Commands of `astra-trl`. Heavy imports stand inside commands, so that help is fast."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from astra_trl import __version__
from astra_trl.cli.interruption import advise, interruptible, resume_advice, users_command
from astra_trl.errors import InputError, final_line

HELP = """\
usage: astra-trl COMMAND [flags...]

Train an LLM tester to find, in conversation, what makes a target LLM misbehave.

commands:
  train      train a tester against a target
  evaluate   measure a tester on held-out openings
  report     make one HTML page, or Markdown, of runs and evaluations
  push       push a trained tester to the Hub
  prompts    list, show and write down where conversations start
  sandbox    train on a tiny world whose weaknesses are known; make another

  --help     show this, or after a command the help of that command
  --version  show the version

examples:
  astra-trl sandbox run
  astra-trl train --tester openai-community/gpt2 \\
      --target openai-community/gpt2 --prompts convokit-reddit
  astra-trl report runs/dpo_sandbox -o report.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 1 if an input cannot be used, 2 if a command or flag is unknown.

    Without `argv`, the command is that of this process, and a signal ends it in one line."""
    with interruptible(program=argv is None):
        return _run_command(*(sys.argv[1:] if argv is None else argv))


def _run_command(command: str = "--help", *rest: str) -> int:
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"astra-trl {__version__}")
        return 0
    if command not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"error: unknown command {command!r}: choose one of {names} (see astra-trl --help)", file=sys.stderr)
        raise SystemExit(2)
    from astra_trl.outputs import explain_output

    try:
        with explain_output():
            return COMMANDS[command](rest)
    except InputError as error:
        print(final_line(error), file=sys.stderr)
        return 1
    except BrokenPipeError:  # e.g. by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _train(argv: Sequence[str], words: Sequence[str] = ("train",)) -> int:
    from astra_trl.cli.parse_train import choose, help_parser, parse, train_parser
    from astra_trl.cli.parser import underscored
    from astra_trl.sandbox.defaults import sandbox_defaults
    from astra_trl.systems import system_class

    prog = " ".join(["astra-trl", *words])
    sandbox = words[0] == "sandbox"
    if _asks_for_help(argv) or "--help_all" in map(underscored, argv):
        choice = choose(argv, prog=prog)
        system, algorithm = choice.system, choice.algorithm
        defaults = system_class(system).default_settings(algorithm) | {"system": system, "algorithm": algorithm}
        defaults |= sandbox_defaults(system, algorithm) if sandbox else {}
        parser = help_parser(prog, sandbox, None if _asks_for_help(argv) else algorithm)
        parser.set_defaults_with_config(**defaults)
        parser.print_help()
        return 0

    choice = choose(argv, prog=prog)
    defaults = sandbox_defaults(choice.system, choice.algorithm) if sandbox else {}
    from astra_trl.cli.launching import launch, split_launch_flags

    parser = train_parser(prog, choice.algorithm)
    launch_flags, rest = split_launch_flags(argv, parser)
    arguments = parse(defaults, rest, parser, choice)
    advise(lambda: resume_advice(arguments[1].output_dir))
    if launch_flags:
        with choice.file.on_disk() as path:  # each process reads it
            config = [] if path is None else ["--config", path]
            return launch(launch_flags, ["astra_trl.cli.main", *words, *rest, *config])

    from astra_trl.cli.train import run

    run(*arguments)
    return 0


def _evaluate(argv: Sequence[str]) -> int:
    from astra_trl.cli.parse_evaluate import evaluate_parser, parse_evaluate

    advise(lambda: f"interrupted: continue with: {users_command()}")
    if _asks_for_help(argv):
        parser = evaluate_parser()
        parser.set_defaults_with_config(reward=None)
        parser.print_help()
        return 0
    arguments = parse_evaluate(argv)
    from astra_trl.cli import evaluate

    evaluate.evaluate(*arguments)
    return 0


def _report(argv: Sequence[str]) -> int:
    from astra_trl.cli.parser import FlagParser

    parser = FlagParser(
        "astra-trl report",
        description="Make one HTML page, or Markdown, of runs and evaluations, side by side.",
        epilog="""\
examples:
  astra-trl report runs/dpo_sandbox -o report.html
  astra-trl report runs/dpo runs/grpo --format md > report.md
""",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="a run's output_dir or an evaluation's folder")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: report.html; Markdown goes to the terminal")
    parser.add_argument("--format", choices=["html", "md"], help="default: by the file's name, else html")
    args = parser.parse_args(list(argv))
    from astra_trl import report

    written = {".md": "md", ".markdown": "md"}.get(Path(args.output or "").suffix.lower(), "html")
    if (args.format or written) == "html":
        print(f"wrote {report.write_report(args.folders, args.output or 'report.html')}")
    elif args.output is None:
        print(report.markdown_report(args.folders))
    else:
        print(f"wrote {report.write_markdown_report(args.folders, args.output)}")
    return 0


def _push(argv: Sequence[str]) -> int:
    from astra_trl.cli.parser import FlagParser

    parser = FlagParser(
        "astra-trl push",
        description="Push a trained tester to the Hub with a model card and print its address. The\nrepository is "
        "private and holds no conversations, unless you say so.",
        epilog="""\
Your token is read from the variable HF_TOKEN or from `hf auth login`.

examples:
  astra-trl push runs/dpo_gpt2
  astra-trl push runs/dpo_gpt2 --repo_id me/tester --public
""",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a run's output_dir or one of its checkpoints")
    parser.add_argument("--repo_id", metavar="ID", help="default: the folder's name, in your namespace")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    parser.add_argument("--public", action="store_true", help="let everybody see the repository")
    parser.add_argument("--push_transcripts", action="store_true", help="push the conversations too")
    parser.add_argument("--commit_message", metavar="TEXT", help="what the commit is called")
    args = parser.parse_args(list(argv))
    from astra_trl import hub

    url = hub.push(
        args.folder,
        args.repo_id,
        private=not args.public,
        push_transcripts=args.push_transcripts,
        revision=args.revision,
        commit_message=args.commit_message,
    )
    print(url)
    return 0


def _prompts(argv: Sequence[str]) -> int:
    from astra_trl.cli.parser import FlagParser

    parser = FlagParser(
        "astra-trl prompts",
        description="List the named sets of openings, show what is in a set, or write one down.",
        epilog="""\
examples:
  astra-trl prompts
  astra-trl prompts show sandbox --split test --limit 3
  astra-trl prompts build advbench --limit 100 -o advbench.jsonl
""",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    show = commands.add_parser(
        "show",
        help="print some openings of a set, and how many there are",
        description="Print some openings of a set, and how many there are.",
        epilog="example:\n  astra-trl prompts show convokit-reddit --split test",
    )
    build = commands.add_parser(
        "build",
        help="write a set to a file that --prompts takes",
        description="Write a set to a local file that --prompts takes.",
        epilog="example:\n  astra-trl prompts build convokit-reddit --split dev -o dev.jsonl",
    )
    for command in (show, build):
        command.add_argument("source", metavar="SOURCE", help="a named set, a file or a Hub dataset id")
        command.add_argument("--split", default="train", metavar="NAME", help="train, dev or test (default: train)")
        command.add_argument("--column", metavar="NAME", help="column that holds the openings")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="draws the openings (default: 0)")
    show.add_argument("--limit", type=int, default=5, metavar="N", help="how many to print (default: 5)")
    build.add_argument("--limit", type=int, metavar="N", help="how many to write (default: all)")
    build.add_argument("-o", "--output", metavar="FILE", required=True, help="a .jsonl or .txt file")
    build.add_argument("--force", action="store_true", help="write over a file that exists")
    args = parser.parse_args(list(argv))
    from astra_trl.prompts.base import read_prompts
    from astra_trl.prompts.show import describe_openings, describe_sets, write_openings

    if args.command is None:
        print(f"{describe_sets()}\n--prompts takes these, local files and Hub dataset ids; see --help.")
    elif args.command == "show":
        if args.limit < 0:
            parser.error("--limit must be 0 or more")
        openings, place = read_prompts(args.source, args.split, args.column, None, args.seed, "--column")
        print(describe_openings(openings, args.limit, args.seed, place))
    else:
        openings, place = read_prompts(args.source, args.split, args.column, args.limit, args.seed, "--column")
        output = write_openings(openings, args.output, args.force)
        print(f"wrote {len(openings):,} openings{f' of {place}' if place else ''} to {output}")
    return 0


def _sandbox(argv: Sequence[str]) -> int:
    if argv and argv[0] == "run":
        return _train(argv[1:], ("sandbox", "run"))
    from astra_trl.cli.parser import FlagParser
    from astra_trl.sandbox.commands import BUILD, add_build_flags, describe_world, run_build

    parser = FlagParser(
        "astra-trl sandbox",
        description="A tiny tester and a tiny target that is rude about a few topics, on a laptop.",
        epilog="""\
examples:
  astra-trl sandbox run
  astra-trl sandbox show --reveal
  astra-trl sandbox build --seed 7 --weak apples,snow --output world7
""",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("run", help="train the tester, about a minute on a CPU", add_help=False)
    show = commands.add_parser(
        "show",
        help="print what a world is about",
        description="Print what a world is about.",
        epilog="example:\n  astra-trl sandbox show --world world7 --reveal",
    )
    show.add_argument(
        "--world", metavar="DIR", help="'delayed', 'wide' or a world's folder (default: the embedded one)"
    )
    show.add_argument("--reveal", action="store_true", help="tell what the target is rude about")
    example = "example:\n  astra-trl sandbox build --seed 7 --weak apples,snow,soup,jazz --output world7"
    add_build_flags(commands.add_parser("build", help="make another world", description=BUILD, epilog=example))
    args = parser.parse_args(list(argv))
    if args.command == "build":
        run_build(args)
    else:
        print(describe_world(args.world, args.reveal))
    return 0


def _asks_for_help(argv: Sequence[str]) -> bool:
    return "-h" in argv or "--help" in argv


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "push": _push,
    "prompts": _prompts,
    "sandbox": _sandbox,
}

if __name__ == "__main__":
    sys.exit(main())
