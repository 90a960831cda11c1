"""What a plan starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from empirical.data.splits import held_out
from empirical.planning.settings import Activation
from empirical.planning.stand_in import StandIn
from langevin.support import labels as data_labels
from langevin.support import validate
from langevin.support.validate import FloatArray

# columns that an error names
_SHOWN = 8
# rows and entries of W that a simulation has at most
_ROWS, _ENTRIES = 4096, 2**15
# of a run: passes over the rows times rows times entries of W; and the rows that it has nonetheless
_WORK, _FEWEST = 2**28, 512


class Inputs(NamedTuple):
    """The net to simulate, names of the classes, numbers of rows and of those that train; what was done.

    And the private held-out rows and labels of a private plan, as inputs of the net.
    """

    net: StandIn
    names: tuple[str, ...]
    rows: int
    trained: int
    notes: tuple[str, ...]
    private: tuple[FloatArray, NDArray[np.int64]] | None = None


def prepare_inputs(
    X: ArrayLike,
    y: ArrayLike,
    W: ArrayLike | None,
    v: ArrayLike | None,
    X_test: ArrayLike | None,
    y_test: ArrayLike | None,
    activation: Activation | None,
    random: np.random.Generator,
    *,
    passes: float = 1.0,
    private: bool = False,
) -> Inputs:
    """Check the arrays, and make a net of them that a simulation can afford.

    Runs of ``passes`` over the rows see fewer rows the larger the net is. With ``private``, ``X_test`` and
    ``y_test`` affect nothing but the rows that the result sets apart.
    """
    features, (names, labels) = validate.array("X", X, 2), numbered_classes(y)
    validate.same_length("X", features, "y", labels)
    rows, notes = len(labels), []
    if (X_test is None) != (y_test is None):
        raise ValueError("X_test and y_test must be given together: one of them is None")
    given = None if X_test is None or y_test is None else _held(X_test, y_test, features, names)
    if given is None or private:
        test, train = held_out(names, labels, random)
        held, held_labels = features[test], labels[test]
        features, labels = features[train], labels[train]
        notes.append(f"{len(held)} of {rows} samples were held out to measure accuracy")
    else:
        held, held_labels = given
    trained = len(labels)
    if activation is None:
        activation = "linear" if W is None and features.min() < 0 else "relu"
        if activation == "linear":
            notes.append("some features are negative: full fine-tuning is a linear map of them")
    layer, head = _start(features, W, v, len(names))
    apart = given[0] if private and given is not None else held[:0]
    if trained > (most := _rows(layer, passes)):
        kept = some_rows(labels, most, random)
        notes.append(f"simulated on {most} of {trained} training samples")
        features, labels = features[kept], labels[kept]
    features, both, layer, cut = _cut(features, np.vstack([held, apart]), layer)
    held, apart = both[: len(held)], both[len(held) :]
    net = StandIn(features, labels, held, held_labels, layer, head, len(names), activation)
    rest = (apart, given[1]) if private and given is not None else None
    # of a file with held-out rows no others are held out when it is trained on
    return Inputs(net, names, rows, trained if given is None else rows, (*notes, *cut), rest)


def _rows(layer: FloatArray, passes: float) -> int:
    """Training rows that a run can afford."""
    return int(np.clip(_WORK / passes / min(layer.size, _ENTRIES), _FEWEST, _ROWS))


def _held(
    X: ArrayLike, y: ArrayLike, features: FloatArray, names: tuple[str, ...]
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Held-out rows and their class numbers."""
    held = validate.array("X_test", X, 2)
    _same_columns("X_test", held, features)
    _, labels = data_labels.classes("y_test", y, names)
    validate.same_length("X_test", held, "y_test", labels)
    return held, labels


def require_informative(X: FloatArray, names: Sequence[str] = ()) -> None:
    """Refuse constant columns, by the names of a table; a column of ones for a bias comes with W.

    Raises
    ------
    ValueError
        If a column has the same value in all samples.
    """
    constant = np.flatnonzero(np.ptp(X, axis=0) == 0).tolist()
    if not constant:
        return
    shown = ", ".join(repr(names[place]) if names else str(place) for place in constant[:_SHOWN])
    more = ", ..." if len(constant) > _SHOWN else ""
    raise ValueError(
        f"X must not hold constant columns, got {len(constant)} of {X.shape[1]}"
        f"{'' if names else ', counted from 0'}: {shown}{more}: leave them out, they tell nothing"
    )


def source_of(X: ArrayLike | None, y: ArrayLike | None) -> tuple[FloatArray, NDArray[np.int64]] | None:
    """Features and class numbers of the source of a body, if given."""
    if X is None or y is None:
        if (X is None) != (y is None):
            raise ValueError("X_source and y_source must be given together: one of them is None")
        return None
    features = validate.array("X_source", X, 2)
    _, labels = numbered_classes(y, "y_source")
    validate.same_length("X_source", features, "y_source", labels)
    return features, labels


def some_rows(labels: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return random rows, at least one of each class."""
    order = random.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.concatenate([order[first], np.delete(order, first)])[:count]


def _start(
    X: FloatArray, W: ArrayLike | None, v: ArrayLike | None, classes: int
) -> tuple[FloatArray, FloatArray | None]:
    """First layer and head at the start."""
    layer = np.eye(X.shape[1]) if W is None else validate.array("W", W, 2)
    _same_columns("W", layer, X)
    head = None if v is None else validate.array("v", v, 1 if classes == 2 else 2)
    shape = (len(layer),) if classes == 2 else (len(layer), classes)
    if head is not None and head.shape != shape:
        raise ValueError(f"v must have the shape {shape}, got {head.shape}")
    return layer, None if head is None else head.T


def _same_columns(name: str, values: FloatArray, X: FloatArray) -> None:
    if values.shape[1] != X.shape[1]:
        raise ValueError(f"{name} must have as many columns as X, got {values.shape[1]} and {X.shape[1]}")


def numbered_classes(y: ArrayLike, name: str = "y") -> tuple[tuple[str, ...], NDArray[Any]]:
    """Names of the classes, sorted, and the number of each sample's."""
    names, numbers = data_labels.classes(name, y)
    if len(names) < 2:
        raise ValueError(f"{name} must hold two or more classes, got {len(names)}: {', '.join(names)}")
    if len(names) > len(numbers) / 2:
        raise ValueError(
            f"{name} must hold two samples or more of each class, got {len(names)} different values among "
            f"{len(numbers)}: give more samples; for regression there is no plan"
        )
    return names, numbers


def _cut(
    X: FloatArray, X_test: FloatArray, W: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, list[str]]:
    """Reduce the network to as many principal directions of its inputs as a simulation can afford."""
    most = max(1, _ENTRIES // len(W))
    if X.shape[1] <= most:
        return X, X_test, W, []
    from sklearn.utils.extmath import randomized_svd

    _, sizes, basis = randomized_svd(X, min(most, len(X)), random_state=0)
    kept = float((sizes**2).sum() / max((X**2).sum(), 1e-300))
    note = f"simulated in {len(basis)} of {X.shape[1]} directions, which hold {kept:.1%} of the inputs' size"
    return X @ basis.T, X_test @ basis.T, W @ basis.T, [note]
