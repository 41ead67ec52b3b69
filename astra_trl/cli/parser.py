"""Parser of flags and YAML files: TRL's, with help by section."""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from trl import TrlParser

from astra_trl.backends.api.endpoint import CALLING
from astra_trl.cli.config import MAPPINGS, SECTIONS
from astra_trl.errors import InputError
from astra_trl.text import parse_yaml

# Flags of version 0.1, by the setting that holds them now.
MOVED = {
    "reward": ("_weight", "invalid_reward", "entropy_per_token", "novelty_embedder", "max_history", "gibberish_model"),
    "target": ("target_base_url", "target_api", "target_logprobs", *CALLING),
    "target_sampling": ("target_max_new_tokens", "target_temperature"),
    "system_kwargs": ("method", "instruction", "example_format", "setting", "credit", "credit_gamma"),
    "scorers": ("keywords", "detoxify_", "llama_guard_", "classifier_", "judge_", "scorer_batch_size", "scorer_dtype"),
}


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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(None if args is None else [underscored(arg) for arg in args], namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {InputError(message)} (see {self.prog} --help)\n")
        raise AssertionError  # for type checkers: exit does not return


class Parser(FlagParser, TrlParser):
    """TRL's parser, with help by section in 80 columns, and one line for what is wrong.

    Parsed are only the flags that are given: defaults belong to systems, recipes, files and dataclasses.
    """

    def __init__(self, classes: Sequence[type], prog: str, **kwargs: Any) -> None:
        kwargs = {"usage": "%(prog)s [--config FILE] [flags...]", **kwargs}
        super().__init__(classes, prog=prog, **kwargs)
        kinds = {f.name: f.type for cls in classes for f in fields(cls)}
        for action in self._actions:
            if action.nargs not in (0, "?") and not action.choices:
                numbers = {int: "N", float: "X"}
                action.metavar = "JSON" if action.dest in MAPPINGS else numbers.get(kinds[action.dest], "TEXT")  # type: ignore[arg-type]
        self.add_argument("--config", metavar="FILE", help="YAML file with any of the flags")

    def parse_given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the flags that are given, by name."""
        if "-h" in argv or "--help" in argv:
            self.print_help()
            self.exit()
        for action in self._actions:
            action.default = argparse.SUPPRESS
        found, unknown = self.parse_known_args(argv)
        if unknown:
            names = [arg.lstrip("-").partition("=")[0] for arg in unknown if arg.startswith("--")]
            self.error(next(filter(None, map(moved_to, names)), f"unrecognized arguments: {' '.join(unknown)}"))
        return vars(found)

    def fill(self, settings: Mapping[str, Any], source: str) -> tuple[Any, ...]:
        """Return an instance of each dataclass with these settings."""
        known = {f.name: f for cls in self.dataclass_types for f in fields(cls) if f.init}
        if unknown := [key for key in settings if key not in known]:
            text = moved_to(unknown[0]) or f"unknown setting {unknown[0]!r} (--help_all lists every one)"
            raise InputError(f"{source}: {text}")
        try:
            return self.parse_dict({key: _converted(value, known[key].type) for key, value in settings.items()})
        except (ValueError, TypeError, AttributeError, OSError) as error:  # TRL's configs check types by use
            raise InputError(" ".join(str(error).split())) from error
        except ImportError as error:
            raise InputError(f"a setting needs a package that is missing: install it ({error})") from error

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


def _converted(value: Any, kind: Any) -> Any:
    # YAML reads 1e-5 as text, and a number in quotes is one too.
    kinds = get_args(kind) or (kind,)
    if isinstance(value, str) and str not in kinds:
        for number in (int, float):
            if number in kinds:
                try:
                    return number(value)
                except ValueError:
                    continue
    return value


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        InputError: the file cannot be read, or does not hold a mapping.
    """
    try:
        settings = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config {str(path)!r} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"config {str(path)!r} holds no settings: give a YAML file of `flag: value` lines")
    return settings


def file_settings(path: str | None) -> dict[str, Any]:
    """Return the settings in the file of `--config`, after setting the environment variables of its `env`."""
    settings = {} if path is None else read_settings(path)
    environment = settings.pop("env", {})  # as in TRL
    if not isinstance(environment, dict):
        raise InputError(f"config {path!r}: env is not a mapping of environment variables")
    os.environ.update({str(key): str(value) for key, value in environment.items()})
    return settings


def last_value(argv: Sequence[str], name: str) -> str | None:
    """Return the value of a flag that takes one, before a parser can be built."""
    args = [underscored(arg) for arg in argv]
    values = [arg.partition("=")[2] for arg in args if arg.startswith(f"--{name}=")]
    values += [args[place + 1] for place, arg in enumerate(args[:-1]) if arg == f"--{name}"]
    return values[-1] if values else None
