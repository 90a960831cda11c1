"""Argument checks. Every message names the argument, its value, what is allowed and the remedy."""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Collection, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
T = TypeVar("T")
# whole numbers that doubles hold exactly
_LARGEST = 2**53
# rows of an array that are looked at together
_ROWS = 2**16


def number(name: str, value: Any) -> float:
    """Return ``value`` as a finite float."""
    # which float would take for a number, some of them with a warning
    if isinstance(value, np.complexfloating) or np.ma.is_masked(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return result


def positive(name: str, value: Any, allowed: str = "positive") -> float:
    """Return ``value`` as a float > 0."""
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return result


def non_negative(name: str, value: Any) -> float:
    """Return ``value`` as a float >= 0."""
    result = number(name, value)
    if result < 0:
        raise ValueError(f"{name} must be zero or positive, got {value!r}")
    return result


def positive_or_none(name: str, value: Any) -> float | None:
    """Return ``value`` as a float > 0, or None."""
    return None if value is None else positive(name, value, "positive or None")


def fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float in [0, 1]."""
    result = number(name, value)
    if not 0 <= result <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    return result


def rate(name: str, value: Any) -> float:
    """Return ``value`` as a float in (0, 1]."""
    result = number(name, value)
    if not 0 < result <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    return result


def integer(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an int >= ``minimum``; floats are refused even when whole."""
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if result < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    if result > _LARGEST:
        raise ValueError(f"{name} must be at most 2^53, got a number of {result.bit_length()} bits")
    return result


def instance(name: str, value: Any, kind: type[T]) -> T:
    """Return ``value`` if it is a ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {_called(kind)}, got {type(value).__name__}")
    return value


def original(name: str, value: Any, kind: type[T]) -> T:
    """Return ``value`` if it is a ``kind`` whose class overrides nothing of it.

    For what compiled code and theorems have their own copy of, and would not notice.
    """
    instance(name, value, kind)
    classes = type(value).__mro__
    base = next(c for c in classes if c.__module__.partition(".")[0] == kind.__module__.partition(".")[0])
    for derived in classes[: classes.index(base)]:
        for attribute in vars(derived):
            if hasattr(base, attribute) and not attribute.startswith("__"):
                raise TypeError(
                    f"{name} must not override {_called(base)}.{attribute}, as {derived.__name__} does: "
                    "solvers and bounds have their own copy of it and would ignore yours; see the how-to "
                    "'Add an activation or a loss'"
                )
    return value


def _called(kind: type) -> str:
    module = kind.__module__.partition(".")[0]
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"


def sequence(name: str, value: Any, kind: type[T]) -> list[T]:
    """Return ``value`` as a list of ``kind``."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence of {_called(kind)}, got {value!r}")
    try:
        items = list(value)
    except TypeError:  # an array without axes
        raise TypeError(f"{name} must be a sequence of {_called(kind)}, got {value!r}") from None
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{name} must hold {_called(kind)}, got {type(item).__name__}")
    return items


def path(name: str, value: Any) -> Path:
    """Return ``value`` as a path."""
    if not isinstance(value, str | os.PathLike) or "\0" in (text := os.fspath(value)) or not text:
        raise TypeError(f"{name} must be a path, got {value!r}")
    return Path(text)


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return ``value`` if it is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        listed = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")
    return value


def device(value: Any) -> str:
    """Return the name of a device; whether there is one, `langevin.engine.gpu.chain` says."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:<number>', got {value!r}")
    return value


def plain(name: str, value: Any) -> np.ndarray:
    """Return ``value`` as an array of any type except dates; refuse masks and units of time."""
    unmasked(name, value)
    if callable(getattr(value, "toarray", None)):
        raise TypeError(f"{name} must be a dense array, got a {type(value).__name__}: give {name}.toarray()")
    try:
        given = np.asanyarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from None
    unmasked(name, given)
    if given.dtype.kind in "mM":
        raise TypeError(f"{name} must hold numbers, got {given.dtype}: give times as numbers of one unit")
    if given.ndim == 0 and given.dtype.kind == "O":
        raise TypeError(f"{name} must be an array of real numbers, got a {type(value).__name__}")
    # views of the same data, except for maps into files
    return given if isinstance(given, np.memmap) else np.asarray(given)


def unmasked(name: str, value: Any) -> None:
    """Refuse masked values, below which an array may hold anything."""
    if _masked(value):
        raise ValueError(f"{name} must hold no masked values: remove or impute them")


def _masked(value: Any) -> bool:
    """Tell whether an array, or a list of arrays, has masked entries."""
    if isinstance(value, list | tuple):
        return any(map(_masked, value))
    return isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)


def array(name: str, value: ArrayLike, ndim: int) -> FloatArray:
    """Return a read-only, finite, C-contiguous float64 array with ``ndim`` dimensions.

    A copy of ``value``, unless that is a read-only memory map of doubles, which may be larger than memory.
    """
    given = plain(name, value)
    if given.dtype.kind == "O":
        for x in given.flat:
            if not isinstance(x, numbers.Real | Decimal | np.bool_) or isinstance(x, np.timedelta64):
                raise TypeError(f"{name} must be an array of real numbers, got {x!r} in it")
    elif given.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got {given.dtype}")
    mapped = isinstance(value, np.memmap) and not value.flags.writeable
    try:
        with np.errstate(over="ignore"):  # of longer numbers, which are then found infinite
            result = np.array(given, dtype=np.float64, order="C", copy=None if mapped else True)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from None
    if result.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {result.shape}")
    if result.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {result.shape}")
    bad = 0
    where: tuple[int, ...] = ()
    for first in range(0, len(result), _ROWS):
        rows = result[first : first + _ROWS]
        unusable = ~np.isfinite(rows)
        if unusable.any() and not bad:
            row, *rest = (int(i) for i in np.argwhere(unusable)[0])
            where = (first + row, *rest)
        bad += int(unusable.sum())
    if bad:
        raise ValueError(
            f"{name} must be finite, got {result[where]} at index {where} ({bad} such values): remove or "
            "impute them"
        )
    result.flags.writeable = False
    return result


def labels(name: str, value: FloatArray) -> None:
    """Require labels -1 and +1."""
    wrong = np.abs(value) != 1.0
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must hold the labels -1 and +1, got {value[i]} at index {i}: "
            f"map the two classes to -1 and +1, or take loss='square' for regression"
        )


def same_length(first: str, a: FloatArray, second: str, b: FloatArray) -> None:
    """Require equal leading dimensions."""
    if len(a) != len(b):
        raise ValueError(f"{first} and {second} must have the same length, got {len(a)} and {len(b)}")


def memory(needed: float, what: str, remedy: str, free: float | None = None) -> None:
    """Refuse work that needs more memory than is free.

    Parameters
    ----------
    needed : float
        Bytes that the work will hold at its peak.
    what, remedy : str
        What takes the memory, and what to change.
    free : float, optional
        Bytes; by default this machine's.
    """
    if free is None:
        import psutil

        free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"{what} needs {needed / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free: {remedy}")
