"""Splits of images and rows into public, private and test parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray


def public_and_private(
    names: Sequence[str], classes: Sequence[str] | None, public_classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the numbers of the public and of the private classes, which are disjoint."""
    public = class_numbers("public_classes", public_classes, names) if len(public_classes) else []
    if classes is None:
        private = [number for number in range(len(names)) if number not in public]
    else:
        private = class_numbers("classes", classes, names)
    both = [names[number] for number in private if number in public]
    if both or not private:
        raise ValueError(
            f"classes and public_classes must be disjoint and leave a private class, got {both or 'none'} "
            f"{'in both' if both else 'left'}: remove some from public_classes"
        )
    return public, private


Labels = NDArray[np.int64]
T = TypeVar("T")


def or_default(name: str, value: T | None, kind: type[T]) -> T:
    """Return ``value``, or the default of its kind for None."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}(...) or None, got {value!r}")
    return value


def class_numbers(argument: str, names: Sequence[str], available: Sequence[str]) -> list[int]:
    """Return the places of ``names`` in ``available``; refuse unknown or repeated names, and none."""
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a sequence of names, got {names!r}")
    wanted = [str(name) for name in names]
    unknown = [name for name in wanted if name not in available]
    if unknown or len(set(wanted)) < len(wanted) or not wanted:
        raise ValueError(f"{argument} must be different ones of {', '.join(available)}; got {list(names)!r}")
    return [list(available).index(name) for name in wanted]


def of_classes(labels: Labels, chosen: Sequence[int]) -> tuple[NDArray[np.intp], Labels]:
    """Return the places of the ``chosen`` labels, and for each its place in ``chosen``, the new label."""
    places = np.flatnonzero(np.isin(labels, chosen))
    new = np.full(max(int(labels.max(initial=0)), *chosen, 0) + 1, -1)
    new[list(chosen)] = np.arange(len(chosen))
    return places, new[labels[places]]


def stratified(labels: Labels, counts: Sequence[int], random: np.random.Generator) -> list[NDArray[np.intp]]:
    """Split indices at random into groups of ``counts`` and the rest, each with the classes' shares of all.

    Returns
    -------
    list of ndarray
        Indices of each group and of the rest, disjoint, in a random order.
    """
    left = random.permutation(len(labels))
    groups = []
    for count in counts:
        present, sizes = np.unique(labels[left], return_counts=True)
        quota = count * sizes / max(1, len(left))
        take = np.floor(quota).astype(int)
        take[np.argsort(take - quota, kind="stable")[: count - take.sum()]] += 1
        kept = np.zeros(len(left), dtype=bool)
        for label, number in zip(present, take, strict=True):
            kept[np.flatnonzero(labels[left] == label)[:number]] = True
        groups.append(left[kept])
        left = left[~kept]
    return [*groups, left]


# of a class, to test on: one in so many
_HELD_OUT = 5


def held_out(
    names: tuple[str, ...], labels: Labels, random: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split rows into test rows, a fifth and at least one of each class, and all others."""
    test = []
    for label, name in enumerate(names):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise ValueError(
                f"y must hold two samples or more of each class, got {len(rows)} of class {name!r}: "
                "give X_test and y_test, or leave it out"
            )
        test.append(rows[: max(1, len(rows) // _HELD_OUT)])
    held = np.sort(np.concatenate(test))
    return held, np.setdiff1d(np.arange(len(labels)), held)
