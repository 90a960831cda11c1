"""Read the targets of a loss: labels -1 and +1, real numbers, or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin.model.losses import Loss
from langevin.support import labels, validate


class Targets(NamedTuple):
    """Targets of the training samples and of held-out ones, and the names of the classes."""

    y: NDArray[Any]
    y_test: NDArray[Any] | None
    class_names: tuple[str, ...] = ()


def read_targets(
    loss: Loss, y: ArrayLike, y_test: ArrayLike | None = None, classes: Sequence[Any] | None = None
) -> Targets:
    """Check targets against a loss; see `langevin.model.problem.Problem` for what each loss takes."""
    if loss.classes:
        return _classes(loss, y, y_test, classes)
    if classes is not None:
        raise ValueError(
            f"classes must be left out with loss {loss.name!r}, got {classes!r}: take 'softmax' or 'ovr'"
        )
    targets = _numbers("y", loss, y)
    if y_test is None:
        return Targets(targets, None)
    held_out = _numbers("y_test", loss, y_test)
    if held_out.shape[1:] != targets.shape[1:]:
        raise ValueError(
            f"y_test must have as many columns as y, got shapes {held_out.shape} and {targets.shape}"
        )
    return Targets(targets, held_out)


def _numbers(name: str, loss: Loss, y: ArrayLike) -> NDArray[np.float64]:
    """Labels -1 and +1, or real targets, of which each sample may have several."""
    several = loss.real and np.ndim(validate.plain(name, y)) == 2
    found = validate.array(name, y, 2 if several else 1)
    if several and found.shape[1] == 1:
        raise ValueError(
            f"{name} must have shape (n,) for one target per sample, got {found.shape}: take {name}[:, 0]"
        )
    if loss.signs:
        validate.labels(name, found)
    return found


def _classes(loss: Loss, y: ArrayLike, y_test: ArrayLike | None, classes: Sequence[Any] | None) -> Targets:
    """Class numbers, and the names of the classes."""
    given = labels.plain("y", y)
    if not given.size:
        raise ValueError(f"y must not be empty, got shape {given.shape}")
    named = given.dtype.kind in "bU"
    names = None if classes is None else _names(classes)
    if named:
        names, numbers = _numbered(given, names)
    else:
        numbers = _whole("y", given)
        # each class has a sample, so that there are no more of them than samples
        names = (
            tuple(map(str, range(min(int(numbers.max()) + 1, len(numbers) + 1)))) if names is None else names
        )
    if len(names) == 1:
        raise ValueError(
            f"y must hold at least two classes with loss {loss.name!r}, got only {names[0]!r}: add samples "
            "of another class"
        )
    _require_samples(numbers, names)
    _within("y", numbers, names)
    numbers.flags.writeable = False
    if y_test is None:
        return Targets(numbers, None, names)
    held_out = labels.plain("y_test", y_test)
    if not held_out.size:
        raise ValueError(f"y_test must not be empty, got shape {held_out.shape}")
    if (held_out.dtype.kind in "bU") != named:
        raise ValueError(
            f"y_test must hold {'names' if named else 'numbers'} of classes as y does, got {held_out.dtype}"
        )
    if named:
        tested = labels.classes("y_test", held_out, names)[1]
    else:
        tested = _whole("y_test", held_out)
        _within("y_test", tested, names)
    tested.flags.writeable = False
    return Targets(numbers, tested, names)


def _names(classes: Sequence[Any]) -> tuple[str, ...]:
    """Names of classes as text."""
    if isinstance(classes, str | bytes):
        raise TypeError(f"classes must be a sequence of names, got {classes!r}")
    names = tuple(map(str, validate.sequence("classes", classes, object)))
    if not names:
        raise ValueError("classes must hold at least two names, got none")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"classes must differ from each other, got {twice!r} twice: remove one")
    return names


def _numbered(
    given: NDArray[Any], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the classes and the number of each sample's, in the order of ``names`` if they are given."""
    found, numbers = labels.classes("y", given)
    if names is None:
        return found, numbers
    new = [name for name in found if name not in names]
    if new:
        raise ValueError(
            f"y must hold the classes {', '.join(names)}, got {new[0]!r}: add it to classes, or remove its "
            "samples"
        )
    places = np.array([names.index(name) for name in found], dtype=np.int64)
    return names, places[numbers]


def _whole(name: str, given: NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers from 0."""
    wrong = (given < 0) | (given >= 2**31) | (given != np.floor(given))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must hold class numbers 0 to K - 1, got {given[i]} at index {i}: number the classes "
            "from 0, or give their names as text"
        )
    return given.astype(np.int64)


def _within(name: str, numbers: NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Refuse numbers of classes that do not exist."""
    wrong = numbers >= len(names)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must hold class numbers 0 to {len(names) - 1}, got {numbers[i]} at index {i}: only "
            f"{len(names)} classes are known; remove such samples, or add the class"
        )


def _require_samples(numbers: NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Refuse a class without samples."""
    seen = np.zeros(len(names), dtype=bool)
    seen[numbers[numbers < len(names)]] = True
    if not seen.all():
        k = int(np.argmin(seen))
        raise ValueError(
            f"y must hold samples of each of the {len(names)} classes, got none of class {k} ({names[k]!r}): "
            "number the classes without gaps, or leave the class out"
        )
