"""Unfinished runs on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from langevin.store import atomic, npz
from langevin.store.errors import StoreError

_FORMAT = 1


def save_checkpoint(path: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint atomically."""
    try:
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, config=_encode({"format": _FORMAT, **config}), **arrays)
    except OSError as error:
        raise StoreError(f"checkpoint {path} could not be written: {error}") from error


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what killed processes left of it."""
    path.unlink(missing_ok=True)
    atomic.clear(path)


def load_checkpoint(
    path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Read a checkpoint of exactly this configuration.

    Parameters
    ----------
    shapes : dict, optional
        Shape that each array must have, -1 where any length will do. By default all arrays are read, of any
        shape.

    Raises
    ------
    StoreError
        If the file is damaged, or belongs to another run; the message names what differs.
    """
    try:
        arrays = npz.read(path, None if shapes is None else ["config", *shapes])
        stored = json.loads(arrays.pop("config").tobytes())
        about = {name: stored.get(name) for name in ("format", *config)}
        missing = sorted((shapes or {}).keys() - arrays.keys())
    except (OSError, ValueError, KeyError, AttributeError, npz.Damaged) as error:
        raise StoreError(f"checkpoint {path} is damaged ({error}): remove it to start again") from error
    for name, value in {"format": _FORMAT, **config}.items():
        if about[name] != value:
            inner, there, here = _difference(name, about[name], value)
            raise StoreError(
                f"checkpoint {path} belongs to another run: {inner} is {there!r} there and {here!r} here; "
                "repeat the first command, or remove the file to start again"
            )
    if missing:
        raise StoreError(f"checkpoint {path} is damaged ({missing[0]} is missing): remove it to start again")
    for name, shape in (shapes or {}).items():
        actual = arrays[name].shape
        if len(actual) != len(shape) or any(w not in (-1, a) for a, w in zip(actual, shape, strict=True)):
            raise StoreError(
                f"checkpoint {path} is damaged ({name} has shape {actual}): remove it to start again"
            )
    return arrays


def _difference(name: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """Return the name of the first difference of nested plain data."""
    both: Any = ()
    if isinstance(there, dict) and isinstance(here, dict):
        both = [(key, there.get(key), here.get(key)) for key in dict.fromkeys([*there, *here])]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        both = [(place, *pair) for place, pair in pairs if isinstance(pair[0], dict)]
    for key, one, other in both:
        if one != other:
            return _difference(f"{name}.{key}", one, other)
    return name, there, here


def _encode(config: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(config).encode(), np.uint8)
