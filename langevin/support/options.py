"""Options of a command, derived from data classes: name, type, choices, default and help have one place."""

from __future__ import annotations

import argparse
import collections.abc
import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from typing import Any, Literal

from langevin.support import command, config


class Parser(argparse.ArgumentParser):
    """Command line whose options are fields of data classes, and can be read from a file.

    A field's help is its entry in the docstring. Its metadata may hold ``option`` (another name for it),
    ``choices``, ``metavar``, ``nargs``, ``const`` and ``positional``. Without a default it is required.

    Parameters
    ----------
    program : str
    usage : str
        What follows the program in the usage line.
    **how
        For `argparse.ArgumentParser`.
    """

    def __init__(self, program: str, usage: str = "[option ...]", **how: Any) -> None:
        super().__init__(prog=program, usage=f"{program} {usage}", formatter_class=command.Help, **how)
        self.defaults: dict[str, Any] = {}
        self.renamed: dict[str, str] = {}
        self._options: dict[str, argparse.Action] = {}
        absent: dict[str, Any] = {"default": argparse.SUPPRESS}
        text = "TOML file of options, such as seed = 1; those on the command line take precedence"
        self.add_argument("--config", metavar="FILE", help=text, **absent)
        text = "print all options as such a file and exit"
        self.add_argument("--print-config", action="store_true", help=text, **absent)

    def add(self, title: str, *parts: tuple[type, str], about: str | None = None) -> None:
        """Add a group of options: for each data class the names of some of its fields, in order."""
        group = self.add_argument_group(title, about)
        for kind, names in parts:
            known, hints, texts = {f.name: f for f in fields(kind)}, typing.get_type_hints(kind), _texts(kind)
            flags = {name: flag(_option(f)) for name, f in known.items()}
            for name in names.split():
                words = texts.get(name, "").removesuffix(".").replace("%", "%%").split("``")
                text = "".join(flags.get(word, word) for word in words).replace("`", "")
                self._add(group, known[name], hints[name], text)

    def _add(self, group: Any, field: Field[Any], hint: Any, text: str) -> None:
        name, default, about = _option(field), _default(field), field.metadata
        if default is not MISSING:
            self.defaults[name] = default
        if name != field.name:
            self.renamed[field.name] = name
        word, optional, count = _words(hint)
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if word is bool:
            how["action"] = argparse.BooleanOptionalAction if default else "store_true"
        else:
            how |= {"type": config.reader(word, optional), "choices": _choices(field, hint), "nargs": count}
            how |= {key: about[key] for key in ("metavar", "nargs", "const") if key in about}
        if "positional" in about:
            # parse says what is missing, as a file may hold it
            action = group.add_argument(name, **how | {"nargs": "*" if count else "?"})
        else:
            action = group.add_argument(flag(name), **how)
        self._options[name] = action
        action.shown = default
        if how.get("action") == "store_true":
            # switches off what a file switches on
            off: dict[str, Any] = {"action": "store_false", "default": argparse.SUPPRESS, "dest": name}
            group.add_argument(flag(f"no_{name}"), help=argparse.SUPPRESS, **off)

    def parse(
        self, argv: list[str] | None = None, unread: Callable[[set[str]], Collection[str]] = lambda given: ()
    ) -> tuple[argparse.Namespace, set[str]]:
        """Return all options, and the names of those that were given; or print them, if asked to.

        Parameters
        ----------
        argv : list of str, optional
        unread : callable, optional
            From the names of the options that were given to those that such a run does not read.
        """
        given = vars(self.parse_args(argv))
        path, printed = given.pop("config", None), given.pop("print_config", False)
        if path is not None:
            try:
                words = config.read(path, self._options)
            except ValueError as error:
                self.error(str(error))
            given = vars(self.parse_args(words)) | given
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        missing = [name for name in self._options if name not in self.defaults.keys() | given]
        if missing:
            actions = [self._options[name] for name in missing]
            shown = [
                action.option_strings[0] if action.option_strings else action.metavar for action in actions
            ]
            self.error(f"the following arguments are required: {', '.join(map(str, shown))}")
        options, left_out = self.defaults | given, unread(set(given))
        if printed:
            read = {name: value for name, value in options.items() if name not in left_out}
            print(f"# {self.prog} --config FILE", *config.lines(read, self.defaults), sep="\n")
            self.exit()
        return argparse.Namespace(**options), set(given)


def values(kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a data class, for those of its fields that are options."""
    named = {f.name: _option(f) for f in fields(kind)}
    return {name: getattr(options, option) for name, option in named.items() if hasattr(options, option)}


def names(kind: type, of: str) -> list[str]:
    """Names of the options for some fields of a data class."""
    known = {f.name: f for f in fields(kind)}
    return [_option(known[name]) for name in of.split()]


def words(options: argparse.Namespace, names: Collection[str]) -> list[str]:
    """Write options as words of a command line."""

    def word(part: Any) -> str:
        return f"{part[0]}={json.dumps(part[1])}" if isinstance(part, tuple) else str(part)

    found: list[str] = []
    for name in names:
        value = getattr(options, name)
        found += [flag(name), *map(word, value if isinstance(value, tuple) else (value,))]
    return found


@functools.cache
def choices(kind: type) -> dict[str, tuple[str, ...]]:
    """Fields of a data class that hold one of a few words, and these words."""
    hints = typing.get_type_hints(kind)
    return {f.name: found for f in fields(kind) if (found := _choices(f, hints[f.name]))}


def flag(name: str) -> str:
    """How an option is written on a command line."""
    return f"--{name.replace('_', '-')}"


def _texts(kind: type) -> dict[str, str]:
    """What a numpydoc docstring says of each parameter."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n\n")[0].splitlines():
        if line.startswith(" "):
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
        else:
            names = line.partition(" : ")[0].split(", ")
    return found


def _option(field: Field[Any]) -> str:
    return field.metadata.get("option", field.name)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _choices(field: Field[Any], hint: Any) -> tuple[str, ...] | None:
    word, _, _ = _words(hint)
    literal = typing.get_args(word) if typing.get_origin(word) is Literal else None
    return field.metadata.get("choices", literal)


def _words(hint: Any) -> tuple[Any, bool, int | str | None]:
    """Type of one word, whether None is allowed, and how many words there are."""
    inner = typing.get_args(hint)
    if optional := types.NoneType in inner:
        (hint,) = (one for one in inner if one is not types.NoneType)
        inner = typing.get_args(hint)
    if typing.get_origin(hint) not in (tuple, collections.abc.Sequence):
        return hint, optional, None
    return inner[0], optional, "+" if len(inner) == 1 or inner[1] is ... else len(inner)
