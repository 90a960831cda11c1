"""Options of a command in a TOML file, and how words of a command line are read."""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from langevin.support import command

_KINDS = {int: "a whole number", float: "a number"}


def read(path: str, known: Mapping[str, argparse.Action]) -> list[str]:
    """Return the options of a file as words of a command line.

    Parameters
    ----------
    path : str
    known : mapping of str to Action
        Options by name.

    Raises
    ------
    ValueError
        If the file cannot be read, or holds what is not an option.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    words: list[str] = []
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"unknown option {key!r} in {path}; {command.nearest(name, known)}")
        action, flag = known[name], name.replace("_", "-")
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{key} in {path} must be true or false, got {value!r}")
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, bool | list | dict) for part in parts):
            raise ValueError(f"{key} in {path} must be a number, text, or a list of these, got {value!r}")
        texts = [str(part) for part in parts]
        if not action.option_strings:
            words = [*texts, *words]
        elif isinstance(value, list):
            words += [f"--{flag}", *texts]
        else:
            words.append(f"--{flag}={texts[0]}")
    return words


def lines(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yield options as lines of TOML; what has no TOML value is left out where it is the default."""
    for name, value in options.items():
        if value not in (None, ()) or value != defaults.get(name):
            yield f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        parts = (f"{part[0]}={json.dumps(part[1])}" if isinstance(part, tuple) else part for part in value)
        return f"[{', '.join(map(_toml, parts))}]"
    if isinstance(value, str):
        # TOML has the escapes of JSON, and wants one more
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def reader(word: Any, optional: bool) -> Callable[[str], Any]:
    """Return a function from a word of the command line to a value of type ``word``."""
    if typing.get_origin(word) is tuple:
        return _pair
    if word not in (int, float):
        return str
    return _number_or_none(word) if optional else word


def _pair(text: str) -> tuple[str, Any]:
    """Read ``name=value``, where a value that is not JSON is text."""
    name, sign, value = text.partition("=")
    if not name.isidentifier() or not sign:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _number_or_none(kind: type[int] | type[float]) -> Callable[[str], float | None]:
    """Return a function that reads a number, or "none" as None."""

    def read(text: str) -> float | None:
        try:
            return None if text.lower() == "none" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {_KINDS[kind]} or none, got {text!r}") from None

    return read
