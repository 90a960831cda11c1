"""Read data from .npz, .csv and .parquet files, without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin.data import tables
from langevin.model.losses import LOSSES
from langevin.model.weights import head
from langevin.store import npz
from langevin.support import labels, validate
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    from langevin.model.problem import Problem

SUFFIXES = (".npz", ".csv", ".parquet")
ALLOWED = "a file ending in .npz, .csv or .parquet"
# in an .npz file, besides X and y
_OPTIONAL = ("W", "v", "X_test", "y_test", "X_source", "y_source")
# times that arrays are in memory while they are read
_COPIES = 3


@dataclass(frozen=True, eq=False)
class DataFile:
    """The contents of a data file.

    Attributes
    ----------
    path : Path
    arrays : mapping of str to ndarray
        ``X`` (n, d) and ``y`` (n,); of an ``.npz`` file also those of ``W``, ``v``, ``X_test``, ``y_test``,
        ``X_source`` and ``y_source`` that it holds, unchecked.
    label : str
        The column of a table that became ``y``; "y" in an ``.npz`` file.
    features : tuple of str
        The columns that became ``X``, in order; of an ``.npz`` file none.
    notes : tuple of str
        What was left out.
    """

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    label: str = "y"
    features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class FileProblem(NamedTuple):
    """A problem from a file, with weights if the file has any.

    Attributes
    ----------
    problem : Problem
    W, v : ndarray or None
    classes : tuple of str
        Names of the classes -1 and +1, or 0 to K - 1; none if ``y`` holds targets of a regression.
    file : DataFile
    """

    problem: Problem
    W: FloatArray | None
    v: FloatArray | None
    classes: tuple[str, ...]
    file: DataFile


def is_file(data: str) -> bool:
    """Tell whether ``data`` has the suffix of a data file."""
    return Path(data).suffix.lower() in SUFFIXES


def held(path: str | Path) -> tuple[str, ...]:
    """Return the names of the arrays in an ``.npz`` file; none for other files."""
    return npz.names(Path(path)) if Path(path).suffix.lower() == ".npz" else ()


def from_file(
    path: str | Path, *, label: str = "y", activation: str = "relu", loss: str = "logistic"
) -> FileProblem:
    r"""Read a problem of classes, or of regression, from a file.

    Labels of any kind become -1 and +1 in sorted order; with ``"softmax"`` and ``"ovr"``, class numbers, and
    there may be more than two of them. With a loss of real targets, such as ``"square"``, numbers stay as
    they are.

    Parameters
    ----------
    path : path
        ``.npz``: ``X (n, d)`` and ``y (n,)``; optionally ``W (h, d)``, ``v (h,)`` or ``(h, K)``,
        ``X_test``, ``y_test``.
        ``.csv``: UTF-8, separated by commas, the first line names the columns. ``.parquet``: needs pyarrow.
        Of a table, one column holds the labels and all others are features, which must be numbers.
    label : str
        Column of the labels; of an ``.npz`` file "y".
    activation, loss
        As in `Problem`.

    Returns
    -------
    FileProblem

    Raises
    ------
    ValueError
        If the file is missing, damaged, pickled, or something else than its suffix says; if it has no such
        label, features that are no numbers, or missing values, by row and column; if there are more than two
        classes with a loss of two.
    MemoryError
        If it does not fit into memory, before it is read.
    ImportError
        If pyarrow is needed and not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "animals.csv")
    ...     _ = path.write_text("length,weight,kind\n1,2,dog\n3,4,cat\n")
    ...     found = from_file(path, label="kind")
    >>> found.problem.y, found.classes, found.file.features
    (array([ 1., -1.]), ('cat', 'dog'), ('length', 'weight'))
    """
    from langevin.model.problem import Problem

    validate.choice("loss", loss, LOSSES)
    file = read(path, label)
    arrays, targets, names = file.arrays, {}, ()
    called = f"label {label!r}" if file.features else "y"
    if LOSSES[loss].classes:
        names, targets = _numbered(called, arrays)
    elif LOSSES[loss].real and np.asarray(file.arrays["y"]).dtype.kind in "iuf":
        targets = {name: arrays[name] for name in ("y", "y_test") if name in arrays}
    else:
        names, targets = _two_classes(called, arrays)
    W, v = arrays.get("W"), arrays.get("v")
    problem = Problem(
        *(arrays["X"], targets["y"], activation, loss, arrays.get("X_test"), targets.get("y_test")),
        classes=names if LOSSES[loss].classes else None,
    )
    return FileProblem(
        problem,
        None if W is None else validate.array("W", W, 2),
        None if v is None else head("v", v),
        names,
        file,
    )


def from_npz(
    path: str | Path, *, activation: str = "relu", loss: str = "logistic"
) -> tuple[Problem, FloatArray | None, FloatArray | None]:
    """Read a problem, and weights if there are any, from an ``.npz`` file; see `from_file`.

    Returns
    -------
    problem : Problem
    W, v : ndarray or None
    """
    if _suffix(path) != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}: from_file reads other files")
    return from_file(path, activation=activation, loss=loss)[:3]


def read(path: str | Path, label: str = "y") -> DataFile:
    """Read the arrays of a file; see `from_file` for the formats and the errors."""
    label = validate.instance("label", label, str)
    source, suffix = validate.path("path", path), _suffix(path)
    if not source.is_file():
        raise ValueError(f"data must be {ALLOWED}, but there is no file {str(path)!r}")
    if suffix == ".npz":
        if label != "y":
            raise ValueError(f"label must be left out with an .npz file, which calls labels y, got {label!r}")
        return DataFile(source, _read_npz(source))
    table = tables.read(source, label)
    return DataFile(source, {"X": table.X, "y": table.y}, label, table.features, table.notes)


def _suffix(path: str | Path) -> str:
    suffix = validate.path("path", path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"data must be {ALLOWED}, got {str(path)!r}")
    return suffix


def _numbered(
    name: str, arrays: Mapping[str, NDArray[Any]]
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of the classes, and the number of each sample's."""
    names, numbers = labels.classes(name, arrays["y"])
    targets = {"y": numbers}
    if "y_test" in arrays:
        targets["y_test"] = labels.classes("y_test", arrays["y_test"], names)[1]
    return names, targets


def _two_classes(
    name: str, arrays: Mapping[str, NDArray[Any]]
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return the names of the two classes, and labels -1 and +1."""
    names, numbers = labels.classes(name, arrays["y"])
    if len(names) == 1 and names[0] in ("-1", "1"):
        names, numbers = ("-1", "1"), np.full(len(numbers), int(names[0] == "1"))
    if len(names) != 2:
        raise ValueError(
            f"{name} must hold two classes, got {len(names)}: {tables.listed(names)}; take "
            "loss='softmax' or 'ovr' for all of them, keep the samples of two, or take loss='square' for "
            "regression"
        )
    targets: dict[str, NDArray[Any]] = {"y": 2.0 * numbers - 1}
    if "y_test" in arrays:
        targets["y_test"] = 2.0 * labels.classes("y_test", arrays["y_test"], names)[1] - 1
    return names, targets


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    remedy = "write it with numpy.savez, without object arrays"
    try:
        arrays = npz.read(path, ("X", "y", *_OPTIONAL), copies=_COPIES, what="data file")
    except (OSError, npz.Damaged) as error:
        raise tables.unreadable(path, str(error), remedy) from None
    for name in ("X", "y"):
        if name not in arrays:
            raise ValueError(f"data file {str(path)!r} must hold X and y, {name} is missing")
    return arrays
