"""Parameters that can be swept: names and types, from the annotations of data classes."""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Parameter:
    """A field of a data class.

    Attributes
    ----------
    name : str
    hint : type
        Its annotation.
    default : object
    axis : str
        Name of its dimension if it is swept.
    recorded : bool
        Whether it affects results; otherwise it cannot be swept.
    """

    name: str
    hint: Any
    default: Any
    axis: str
    recorded: bool = True

    def read(self, value: Any) -> Any:
        """Convert a value from TOML or Python to the annotated type; "none" means None.

        Raises
        ------
        TypeError
            On a value of the wrong type.

        Examples
        --------
        >>> Parameter("clip", float | None, 1.0, "clip").read("none")
        >>> Parameter("sigma", float, 0.5, "sigma").read("much")
        Traceback (most recent call last):
        ...
        TypeError: sigma must be a number, got 'much'
        """
        found = _read(self.hint, value)
        if found is _REFUSED:
            raise TypeError(f"{self.name} must be {_words(self.hint)}, got {value!r}")
        return found


def parameters(
    kind: type,
    *,
    without: Collection[str] = (),
    unrecorded: Collection[str] = (),
    axes: Mapping[str, str] | None = None,
) -> dict[str, Parameter]:
    """The fields of a data class, by name.

    Parameters
    ----------
    kind : type
    without : collection of str
        Fields to leave out.
    unrecorded : collection of str
        Fields that do not affect results.
    axes : mapping, optional
        Names of dimensions that differ from the field's.
    """
    hints, axes = typing.get_type_hints(kind), axes or {}
    return {
        f.name: Parameter(
            f.name, hints[f.name], _default(f), axes.get(f.name, f.name), f.name not in unrecorded
        )
        for f in fields(kind)
        if f.name not in without
    }


def require_known(where: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse unknown names, and suggest the nearest known one.

    Examples
    --------
    >>> require_known("[fixed]", ["sgima"], ["sigma", "width"])
    Traceback (most recent call last):
    ...
    ValueError: unknown parameter 'sgima' in [fixed]; did you mean 'sigma'?
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"unknown parameter {name!r} in {where}; {remedy}")


def plain(value: Any) -> Any:
    """Convert a value to JSON; numbers that JSON lacks become strings.

    Examples
    --------
    >>> plain((3, 8)), plain(float("inf")), plain(None)
    ([3, 8], 'inf', None)
    """
    if isinstance(value, dict):
        return {name: plain(of) for name, of in value.items()}
    if isinstance(value, tuple | list):
        return [plain(of) for of in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def label(value: Any) -> str:
    """Text for a value."""
    if isinstance(value, tuple):
        return " ".join(label(of) for of in value)
    if value is None:
        return "none"
    return (
        value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    )


_REFUSED = object()


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _read(hint: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            if one is not type(None) and (found := _read(one, value)) is not _REFUSED:
                # "none" is not the name of a file
                return None if found == "none" and one is str else found
        return (
            None
            if type(None) in inner and (value is None or (isinstance(value, str) and value == "none"))
            else _REFUSED
        )
    if origin is Literal:
        return value if isinstance(value, str) and value in inner else _REFUSED
    if origin is tuple:
        return _read_tuple(inner, value)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return _REFUSED
    # a bool is an int to Python
    return value if type(value) is hint else _REFUSED


def _read_tuple(inner: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, dict):
        value = [list(pair) for pair in value.items()]
    if not isinstance(value, list | tuple):
        return _REFUSED
    hints = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
    if len(hints) != len(value):
        return _REFUSED
    found = tuple(_read(hint, of) for hint, of in zip(hints, value, strict=True))
    return _REFUSED if any(of is _REFUSED for of in found) else found


def _words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("'none'" if one is type(None) else _words(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        if typing.get_origin(inner[0]) is tuple:
            return "a table"
        return (
            f"a list, each {_words(inner[0])}"
            if inner[-1] is ...
            else f"a list of {len(inner)}, each {_words(inner[0])}"
        )
    return {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}.get(
        hint, str(hint)
    )
