"""Shared code of the commands: errors, saving, failures and signals."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from pathlib import Path

from langevin.support import install

EXIT_FAILED = 1


class Help(argparse.HelpFormatter):
    """Show the defaults that `langevin.support.options.Parser` notes, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = getattr(action, "shown", None)
        if any(default is none for none in (None, False, MISSING)) or default == ():
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        return f"{action.help} (default: {shown})"


def fail(command: argparse.ArgumentParser, message: str) -> int:
    """Report a failure and return its exit status."""
    print(f"{command.prog}: error: {message}", file=sys.stderr)
    return EXIT_FAILED


def nearest(name: str, known: Collection[str]) -> str:
    """What an unknown name may have been meant for."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


def as_option(command: argparse.ArgumentParser, message: str, names: Mapping[str, str]) -> str:
    """Name the option instead of the argument that a message starts with.

    Parameters
    ----------
    command : ArgumentParser
    message : str
    names : mapping
        From arguments to options that are called otherwise.
    """
    found = re.match(r"(\w+)[ =](.*)", message, re.DOTALL)
    name, rest = found.groups() if found else ("", "")
    option = f"--{names.get(name, name).replace('_', '-')}"
    known = {flag for action in command._actions for flag in action.option_strings}
    return f"{option} {rest}" if option in known else message


def refuse_idle(idle: Mapping[str, str], given: object, default: object) -> None:
    """Refuse options that have no effect, unless they have their defaults.

    Parameters
    ----------
    idle : mapping
        From such options to what makes them have none.
    given, default : object
        With the options as attributes; those that it lacks are let through.
    """
    for name, why in idle.items():
        value = getattr(given, name, None)
        if hasattr(default, name) and value != getattr(default, name):
            raise ValueError(f"{name}={value} has no effect {why}; remove it")


def missing(error: ImportError) -> str:
    """Return what to install for a missing package, or the message of another error."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    name = str(error.name)
    return f"{name} is not installed: {install.command(install.extra_of(name))}"


def plot_target(asked: str | Path) -> Path:
    """Refuse a figure that cannot be written, before any work is done."""
    target = Path(asked)
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"plot must end in .png, .pdf or .svg, got {str(asked)!r}")
    if not target.parent.is_dir():
        raise ValueError(f"plot must lie in an existing folder, got {str(asked)!r}")
    return target
