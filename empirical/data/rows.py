"""Tasks of feature vectors from files, instead of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from empirical.data.images import Images, Part
from empirical.data.shift import Bytes, Pixels
from empirical.data.splits import Labels, held_out
from langevin.data import files
from langevin.store import npz
from langevin.support import validate
from langevin.support.labels import classes
from langevin.support.rng import RNG, generator


class Rows(Part):
    """Feature vectors with labels: images of shape (1, 1, d), whose entries are any finite numbers.

    A body sees them as they are: nothing normalises them.

    Examples
    --------
    >>> rows = Rows(np.array([[1.0, -20.0], [3.0, 4.0]]).reshape(2, 1, 1, 2), [0, 1], ["cat", "dog"])
    >>> rows.shape, float(rows.images.min())
    ((1, 1, 2), -20.0)
    """

    @staticmethod
    def _check_range(pixels: Pixels | Bytes) -> None:
        if pixels.dtype == np.uint8:
            raise TypeError("images must hold floats where they are feature vectors, got uint8: convert them")
        if not np.isfinite(pixels).all():
            raise ValueError(
                "images must be finite in single precision, got NaN or infinity: scale the features"
            )

    def fixed_scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean 0 and standard deviation 1, because features are not normalised."""
        return np.zeros(self.shape[0]), np.ones(self.shape[0])


def from_file(path: str | Path, *, label: str = "y", rng: RNG = 0) -> Images:
    """Read a task of feature vectors from an ``.npz``, ``.csv`` or ``.parquet`` file.

    Without ``X_test`` and ``y_test``, which an ``.npz`` file may hold, a fifth of each class is held out.
    There is no public part: statistics of the private features, such as their mean and scale, would be a
    release, so the features are used unchanged. Scale them beforehand, using public data.

    Parameters
    ----------
    path : path
        See `langevin.from_file`.
    label : str
        Column of the labels: numbers or text, of two or more classes.
    rng : int, Generator or None
        Draws what is held out (SPEC 7).

    Returns
    -------
    Images
        Of shape (1, 1, d), in parts that are `Rows`.

    Raises
    ------
    ValueError, MemoryError, ImportError
        As `langevin.from_file`; or on fewer than two classes, a class of one sample, or a test part that does
        not fit.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "animals.npz")
    ...     np.savez(path, X=np.arange(20.0).reshape(10, 2), y=["cat", "dog"] * 5)
    ...     from_file(path)
    Images(...: 8 train, 2 test, no public part, shape (1, 1, 2), 2 classes, ...)
    """
    arrays = files.read(path, label).arrays
    X = validate.array("X", arrays["X"], 2)
    names, labels = classes("y", arrays["y"])
    validate.same_length("X", X, "y", labels)
    if len(names) < 2:
        raise ValueError(f"y must hold two or more classes, got {len(names)}: {', '.join(names)}")
    if ("X_test" in arrays) != ("y_test" in arrays):
        raise ValueError(f"data file {str(path)!r} must hold X_test and y_test together, one is missing")
    if "X_test" in arrays:
        held = validate.array("X_test", arrays["X_test"], 2)
        _, held_labels = classes("y_test", arrays["y_test"], names)
        validate.same_length("X_test", held, "y_test", held_labels)
    else:
        test, train = held_out(names, labels, generator(rng, "held-out rows"))
        held, held_labels, X, labels = X[test], labels[test], X[train], labels[train]
    return Images(_rows(X, labels, names), _rows(held, held_labels, names), name=str(path))


def first_layer(path: str | Path) -> NDArray[np.float64] | None:
    """Return the layer ``W`` (h, d) of an ``.npz`` file, if it has one."""
    if "W" not in files.held(path):
        return None
    return validate.array("W", npz.read(Path(path), ["W"], what="data file")["W"], 2)


def _rows(X: NDArray[np.float64], labels: Labels, names: tuple[str, ...]) -> Rows:
    with np.errstate(over="ignore"):
        return Rows(X.astype(np.float32)[:, None, None, :], labels, names)
