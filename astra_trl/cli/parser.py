"""Parser of flags and YAML files: TRL's, with help by section."""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from trl import TrlParser

from astra_trl.backends.api.endpoint import CALLING
from astra_trl.cli.config import MAPPINGS, NAMES_OR_MAPPINGS, SECTIONS
from astra_trl.cli.settings_file import SettingsFile
from astra_trl.cli.typed import MAX_CHOICES, nearest, typed
from astra_trl.errors import InputError
from astra_trl.numbers import check_number, is_number

# Flags of version 0.1, by the setting that holds them now.
MOVED = {
    "reward": ("_weight", "invalid_reward", "entropy_per_token", "novelty_embedder", "max_history", "gibberish_model"),
    "target": ("target_base_url", "target_api", "target_logprobs", "target_extra_body", *CALLING),
    "target_sampling": ("target_max_new_tokens", "target_temperature"),
    "system_kwargs": ("method", "instruction", "example_format", "setting", "credit", "credit_gamma"),
    "scorers": ("keywords", "detoxify_", "llama_guard_", "classifier_", "judge_", "scorer_batch_size", "scorer_dtype"),
}

# Hyphens, dashes and minus signs that word processors put in place of those of a keyboard.
DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns, with one spelling of each flag and its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(80, shutil.get_terminal_size().columns) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # One spelling, and no longer than a line: TRL's flags have many choices.
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = next(option for option in action.option_strings if option.startswith("--"))
        if action.choices:
            values = " {" + ",".join(map(str, action.choices)) + "}"
            return f"{name}{values if len(values) < 50 else ''}"
        return f"{name} {action.metavar}" if action.metavar else name

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        unset = default is None or default is False or default in ("", argparse.SUPPRESS)
        if not action.help or " Default: " in action.help or unset:
            return action.help
        text = default if isinstance(default, str) else json.dumps(default)
        return f"{action.help} Default: {text.replace('%', '%%')}."


class FlagParser(argparse.ArgumentParser):
    """argparse with help of 80 columns, one line for what is wrong, and `--tree-width` for `--tree_width`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")  # argparse's has no exponent

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for arg in args or ():
            dashed = re.match(rf"-*[{DASHES}][-{DASHES}]*(\w[\w-]*)", arg)
            if dashed and (flag := underscored(f"--{dashed[1]}")) in self._option_string_actions:
                self.error(f"{arg!r} begins with a dash of a word processor: write {flag}")
        return super().parse_known_args(None if args is None else [underscored(arg) for arg in args], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.refuse(rest)
        return found

    def refuse(self, args: Sequence[str]) -> NoReturn:
        """Exit with a message about arguments that are not known, and with the nearest flag."""
        names = [name for arg in args if (name := re.sub(rf"^[-{DASHES}]+|=.*|\s", "", arg, flags=re.S)) != arg]
        flags = [flag[2:] for flag in self._all_flags() if flag.startswith("--") and "-" not in flag[2:]]
        text = next(filter(None, (self.explain(name) for name in names if name not in flags)), None)
        if text is None and any(not arg.strip() for arg in args):
            text = "a backslash at the end of a line must not have a space after it"
        text = text or (nearest(underscored(f"--{names[0]}")[2:].lower(), flags, "--") if names else None)
        self.error(f"unrecognized arguments: {shlex.join(args)}{': ' if text else ''}{text or ''}")

    def explain(self, name: str) -> str | None:
        """Return a message about a name that is not a flag here but elsewhere, or `None`."""
        return None

    def _all_flags(self) -> Iterable[str]:
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._all_flags()

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # one spelling of each flag
        self.exit(2, f"error: {InputError(message)} (see {self.prog} --help)\n")
        raise AssertionError  # for type checkers: exit does not return


class Parser(FlagParser, TrlParser):
    """TRL's parser, with help by section in 80 columns, and one line for what is wrong.

    Parsed are only the flags that are given: defaults belong to systems, recipes, files and dataclasses.
    """

    def __init__(
        self, classes: Sequence[type], prog: str, explain: Callable[[str], str | None] | None = None, **kwargs: Any
    ) -> None:
        kwargs = {"usage": "%(prog)s [--config FILE] [flags...]", **kwargs}
        super().__init__(classes, prog=prog, **kwargs)
        self._explain_more = explain
        # Not the types of `fields`, which TRL's parser replaces by those of the command line.
        self.hints = {
            f.name: _hint(f, hints[f.name])
            for cls in classes
            if (hints := get_type_hints(cls))
            for f in fields(cls)
            if f.init
        }
        for action in self._actions:
            hint = self.hints.get(action.dest)
            kinds = (hint, *get_args(hint))
            if pair := next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), ()):
                action.nargs, action.type = len(pair), str  # TRL's parser makes a tuple of the letters of a word
            elif action.type is not None and {int, float} & {*kinds}:
                action.type = str  # `_typed` says what is allowed
            if len([*(action.choices or ())]) > MAX_CHOICES:
                action.choices = None  # the message would list them all: `typed` names the nearest
            if action.nargs not in (0, "?") and not action.choices:
                numbers = [letter for kind, letter in ((int, "N"), (float, "X")) if kind in kinds]
                action.metavar = "JSON" if action.dest in MAPPINGS else (*numbers, "TEXT")[0]
        self.add_argument("--config", metavar="FILE", help="YAML file with any of the flags")

    def parse_given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the flags that are given, by name."""
        if "-h" in argv or "--help" in argv:
            self.print_help()
            self.exit()
        for action in self._actions:
            action.default = argparse.SUPPRESS
        found = vars(self.parse_args(argv))
        return {
            key: self._typed(key, value, value, f"--{key}") if key in self.hints else value
            for key, value in found.items()
        }

    def settings_in(self, file: SettingsFile) -> dict[str, Any]:
        """Return the settings of a file, with values of the types of their fields.

        Raises:
            InputError: a name is unknown, or a value is of another type.
        """
        called = f"config {file.path!r}"
        # `env`, TRL's environment variables, has been checked by `refuse_switched_on`: they are set already.
        settings = {key: value for key, value in file.settings.items() if key != "env"}
        self._check_names(settings, called)
        return {
            key: self._typed(key, value, file.texts.get(key, value), f"{called}: {key}")
            for key, value in settings.items()
        }

    def _typed(self, key: str, value: Any, written: Any, called: str) -> Any:
        value = typed(value, written, self.hints[key], called)
        for part in value if isinstance(value, list) else [value]:
            if is_number(part):
                check_number(key, part, called)
        return value

    def fill(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return an instance of each dataclass with these settings."""
        self._check_names(settings, "settings")
        try:
            return self.parse_dict(dict(settings))
        except (ValueError, TypeError, AttributeError, OSError) as error:  # TRL's configs check types by use
            raise InputError(" ".join(str(error).split())) from error
        except ImportError as error:
            raise InputError(f"a setting needs a package that is missing: install it ({error})") from error

    def explain(self, name: str) -> str | None:
        return moved_to(name) or (self._explain_more(name) if self._explain_more else None)

    def _check_names(self, settings: Mapping[str, Any], source: str) -> None:
        for name in settings:
            if name not in self.hints:
                text = self.explain(name) or nearest(name, self.hints) or f"{self.prog} --help lists them"
                raise InputError(f"{source}: unknown setting {name!r}: {text}")

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        sections: dict[str, list[argparse.Action]] = {"options": [], **{title: [] for title in SECTIONS.values()}}
        title = "trainer and models of TRL"
        for action in self._actions:
            if any(option.startswith("--no_") for option in action.option_strings):
                continue
            own = action.dest in ("config", "help", "help_all", "folder")
            title = SECTIONS.get(action.dest, title)
            sections.setdefault("options" if own else title, []).append(action)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def underscored(arg: str) -> str:
    """Return a flag with underscores, as it is named here, if it was written with hyphens."""
    name, equals, value = arg.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else arg


def moved_to(name: str) -> str | None:
    """Return a message that names the setting which replaced a flag of version 0.1."""
    for setting, names in MOVED.items():
        if any(
            name == old or (old[0] == "_" and name.endswith(old)) or (old[-1] == "_" and name.startswith(old))
            for old in names
        ):
            return f"{name} is now a part of the mapping {setting}: see docs/configuration.md"
    return None


def _hint(f: Field[Any], hint: Any) -> Any:
    # As in a file. The types say text too, as the command line has JSON.
    if "choices" in f.metadata:
        choices: Any = Literal[tuple(f.metadata["choices"])]
        return choices | None if f.default is None else choices
    if f.name in NAMES_OR_MAPPINGS and list[str] in (hint, *get_args(hint)):
        return list[dict[str, Any] | str] | None
    if f.name in MAPPINGS or (f.name.endswith("_kwargs") and str in get_args(hint)):
        return dict[str, Any] | None
    return hint
