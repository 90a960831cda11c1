"""Read labels of any kind: numbers, booleans, text, and their pandas and NumPy forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# of a kind each: what np.unique sorts
_KINDS = {"b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers", "U": "text"}


def plain(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return labels as an array of numbers, booleans or text.

    Text may come as a list, as bytes, as an array of objects or of NumPy's ``StringDType``, or as a Series,
    Categorical or Index of pandas.

    Parameters
    ----------
    name : str
        How messages call the labels.
    value : array_like, shape (n,)

    Raises
    ------
    ValueError
        If a label is missing, by its index; if labels are of several kinds, of another one, or not in a row.

    Examples
    --------
    >>> plain("y", np.array(["dog", "cat"], dtype=object))
    array(['dog', 'cat'], dtype='<U3')
    >>> plain("y", ["dog", None])
    Traceback (most recent call last):
    ...
    ValueError: y must hold a label for each sample, got None at index 1: leave such samples out
    """
    if isinstance(value, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(value)).any():
        raise _missing(name, "a masked value", int(masked.ravel().argmax()))
    try:
        given = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        raise ValueError(f"{name} must be one row of numbers or text, got {value!r}") from None
    if given.dtype.kind == "U" and not hasattr(value, "dtype"):
        # NumPy has made text of whatever was among it
        given = np.asarray(value, dtype=object)
    if given.ndim == 1 and given.dtype.kind in "OTS":
        given = _of_objects(name, given.astype(object))
    if given.ndim != 1 or given.dtype.kind not in _KINDS:
        raise ValueError(
            f"{name} must be one row of numbers or text, got shape {given.shape} of {given.dtype}"
        )
    if given.dtype.kind == "f" and not (finite := np.isfinite(given)).all():
        raise _missing(name, str(given[~finite][0]), int(finite.argmin()))
    return given


def classes(
    name: str, value: ArrayLike, known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the names of the classes, sorted, and the number of each sample's.

    Parameters
    ----------
    name : str
    value : array_like, shape (n,)
        See `plain`.
    known : sequence of str, optional
        The classes that there are, where they are known already.

    Raises
    ------
    ValueError
        As `plain`; or if a class is not among those known.

    Examples
    --------
    >>> classes("y", [2.0, 1.0, 2.0])
    (('1', '2'), array([1, 0, 1]))
    """
    values, numbers = np.unique(plain(name, value), return_inverse=True)
    # the same class whether it is written 1 or 1.0
    names = tuple(str(int(v) if isinstance(v, float) and v.is_integer() else v) for v in values.tolist())
    if known is None:
        return names, numbers.astype(np.int64)
    new = [n for n in names if n not in known]
    if new:
        raise ValueError(f"{name} must hold classes of y, {', '.join(known)}, got {new[0]}")
    places = np.array([list(known).index(n) for n in names], dtype=np.int64)
    return tuple(known), places[numbers]


def _of_objects(name: str, given: NDArray[Any]) -> NDArray[Any]:
    """The same as an array of one kind."""
    items = [item.decode("utf8", "replace") if isinstance(item, bytes) else item for item in given.tolist()]
    kinds: dict[str, int] = {}
    for index, item in enumerate(items):
        if _is_missing(item):
            raise _missing(name, str(item), index)
        kinds.setdefault(_kind(item), index)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} at index {index}" for kind, index in kinds.items())
        raise ValueError(f"{name} must be all numbers or all text, got {found}")
    if not set(kinds) <= set(_KINDS.values()):
        kind, index = next(iter(kinds.items()))
        raise ValueError(f"{name} must be one row of numbers or text, got {kind} at index {index}")
    return np.array(items, dtype=None if items else np.str_)


def _kind(item: Any) -> str:
    """Return the kind of a label, or the type of a value that is not a label."""
    try:
        found = np.asarray(item)
    except (ValueError, TypeError, OverflowError):
        return type(item).__name__
    return _KINDS.get(found.dtype.kind, type(item).__name__) if found.ndim == 0 else type(item).__name__


def _is_missing(item: Any) -> bool:
    """Tell whether a value is missing: None, NaN, or pandas's NA and NaT."""
    return (
        item is None
        or type(item).__name__ in ("NAType", "NaTType")
        or (isinstance(item, float) and math.isnan(item))
    )


def _missing(name: str, what: str, index: int) -> ValueError:
    return ValueError(
        f"{name} must hold a label for each sample, got {what} at index {index}: leave such samples out"
    )
