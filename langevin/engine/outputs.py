"""Data, rule and work space of the compiled step of a network with K outputs, see `advance_outputs`."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.normals import LANES, TILE
from langevin.engine.kernels.outputs.types import (
    CLIPPINGS,
    COLUMN,
    COLUMN_MULTIPLE,
    LOSSES,
    MARGIN,
    TOGETHER,
    OutputsData,
    OutputsRule,
    OutputsScratch,
)
from langevin.engine.kernels.types import REFLECTORS
from langevin.engine.layout import CACHE_LINE, Layout, addresses, aligned_zeros, up
from langevin.model.losses import LOSSES as TABLE
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import blocks_of_rows
from langevin.support.threads import one_blas_thread
from langevin.support.validate import FloatArray

# bytes that stay in the second cache: activations of a block, columns of W updated at once, a first layer
_ACTIVATIONS, _COLUMNS, _LAYER = 2**19, 2**18, 2**19
# rows of a block if the first layer streams from further away: so many that products dominate
_STREAMED_ROWS = 512
# rows that are multiplied by the head's transpose at once
_PULLED_ROWS = 16


def build_data(
    layout: Layout,
    X: FloatArray,
    Y: FloatArray,
    *,
    activation: str,
    loss: str,
    classes: bool,
    order: np.ndarray | None = None,
    features: FloatArray | None = None,
) -> OutputsData:
    """Convert a problem to the form of the compiled code.

    Parameters
    ----------
    layout : Layout
        Of the states; with one output less than there are targets, heads are in gauge coordinates.
    X : ndarray, shape (n, k)
        Inputs.
    Y : ndarray, shape (n, K) or (n,)
        Targets: one-hot for ``"softmax"`` and ``"ovr"``, -1 and +1 for ``"logistic"``, real otherwise.
    activation, loss : str
        Keys of the tables; the loss may also be ``"softmax"`` or ``"ovr"``.
    classes : bool
        Whether the targets are classes, so that there is an accuracy.
    order : ndarray of int, shape (n,), or None
        Row ``i`` is sample ``order[i]``, for which batches are drawn; None: rows are in the samples' order.
    features : ndarray, shape (n, h), or None
        ``phi(X W^T)`` if it is all the same; then only linear probing can be run.
    """
    n, number = len(X), np.dtype(layout.dtype)
    inputs = aligned_zeros((n, up(layout.inputs, CACHE_LINE // number.itemsize)), number)
    inputs[:, : layout.inputs] = X[:, : layout.inputs]
    # a copy: the loop would be compiled once more for what cannot be written
    targets = np.array(Y.reshape(n, -1), number, order="C")
    frozen = aligned_zeros((0 if features is None else n, layout.ld), number)
    if features is not None:
        frozen[:, : layout.width] = features
    position = np.empty(n, np.int64)
    position[np.arange(n) if order is None else order] = np.arange(n)
    rows = _rows(layout, n)
    if loss not in LOSSES and TABLE[loss].classes:
        raise ValueError(f"loss must be 'softmax' or 'ovr' to be simulated with classes, got {loss!r}")
    phi, value, residual = addresses(activation, None if loss in LOSSES else loss, layout.dtype)
    return OutputsData(
        inputs,
        2 * targets - 1 if loss == "ovr" else targets,
        targets.argmax(axis=1) if loss == "softmax" else np.zeros(0, np.int64),
        _reach(inputs),
        np.einsum("ij,ij->i", X, X).astype(number),
        position,
        bool((position != np.arange(n)).any()),
        frozen,
        inputs=layout.inputs,
        width=layout.width,
        outputs=layout.outputs,
        gauge=layout.outputs < targets.shape[1],
        head=layout.head,
        rows=rows,
        frozen_rows=min(rows, _cached_rows(layout, arrays=1)),
        pulled=min(_PULLED_ROWS, rows),
        columns=up(max(_COLUMNS // (layout.ld * number.itemsize), 1), COLUMN_MULTIPLE),
        activation=types.CODES.get(activation, types.CALLED),
        loss=LOSSES.get(loss, types.CALLED),
        classes=classes,
        phi=phi,
        value=value,
        residual=residual,
    )


def _reach(X: np.ndarray) -> np.ndarray:
    """Columns up to the last one that is not zero, at least one, in each row or in one before it."""
    last = np.zeros(len(X), np.int64)
    for column in range(X.shape[1]):
        last[X[:, column] != 0] = column
    return np.maximum.accumulate(last + 1)


def freeze(layout: Layout, data: OutputsData, problem: Problem, W: FloatArray) -> OutputsData:
    """Give data the features at a first layer ``W (h, k)``, for all linear probing from there to share."""
    features = aligned_zeros((problem.samples, layout.ld), layout.dtype)
    # the same bits whatever the number of threads; runs show by diverging that features are not finite
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        for rows in blocks_of_rows(problem.samples, layout.width):
            features[rows, : layout.width] = problem.activate(problem.X[rows] @ W.T)
    return data._replace(features=features)


def build_scratch(layout: Layout, data: OutputsData, *, probing: bool, folds: bool = False) -> OutputsScratch:
    """Work space for one thread.

    Parameters
    ----------
    layout : Layout
    data : OutputsData
    probing : bool
        Whether a phase of linear probing may be run.
    folds : bool
        Whether neurons are folded.
    """
    n, outputs = len(data.Y), layout.outputs
    number, b, ld = layout.dtype, data.rows, layout.ld
    stored = n if probing and data.features.size == 0 else 0
    return OutputsScratch(
        A=aligned_zeros((b, ld), number),
        D=aligned_zeros((b, ld), number),
        G=aligned_zeros((data.pulled if data.phi else 0, ld), number),
        X=aligned_zeros((b, data.X.shape[1]), number),
        F=aligned_zeros((outputs, up(b, 16)), number),
        R=aligned_zeros((outputs, up(b, 16)), number),
        lifted=aligned_zeros((2, data.Y.shape[1], b if data.gauge else 0), number),
        row=aligned_zeros((data.Y.shape[1],), number),
        samples=aligned_zeros((6, up(b, 16)), number),
        lines=np.zeros(up(b, 16), np.int64),
        neurons=aligned_zeros((3, ld), number),
        heads=aligned_zeros((TOGETHER if probing else 1, outputs, ld), number),
        layer=aligned_zeros((data.inputs if n > b else 0, ld), number),
        features=aligned_zeros((stored, ld), number),
        # a row more than can be drawn, see `draw_batch`
        batch=np.zeros(n + 1, np.int64),
        marks=np.zeros(n, np.uint8),
        words=aligned_zeros((4, LANES), np.uint32),
        ints=np.zeros(8, np.int32),
        scalars=np.zeros(2, number),
        **(_folding(layout) if folds else {}),
    )


def _folding(layout: Layout) -> dict[str, np.ndarray]:
    """Work space in which neurons are folded."""
    columns, number = layout.inputs + layout.outputs, layout.dtype
    shape = columns, up(columns + layout.outputs, CACHE_LINE // np.dtype(number).itemsize)
    return dict(
        triangle=aligned_zeros(shape, number),
        stack=aligned_zeros(shape, number),
        bartlett=aligned_zeros((up(columns * (columns - 1) // 2, TILE),), number),
        reflectors=aligned_zeros((2, REFLECTORS * columns), number),
    )


def build_rule(
    layout: Layout,
    *,
    method: Literal["lp", "fft"],
    clip: float | None,
    clipping: str,
    stabiliser: float,
    sigma: float,
    sample_rate: float = 1.0,
    dt: float = 0.0,
    draws: int = 1,
    folded: int = 0,
) -> OutputsRule:
    """Convert the numbers of a phase to the form of the compiled code; ``sigma`` as in `Phase`."""
    number = layout.dtype
    code = types.UNCLIPPED if clip is None else CLIPPINGS[clipping]
    if clip is not None and number(clip) == 0:
        raise ValueError(f"clip must be larger for this precision, got {clip:g}: take precision='double'")
    if code in (MARGIN, COLUMN) and method != "lp":
        raise ValueError(f"clipping {clipping!r} needs method 'lp', got {method!r}")
    return OutputsRule(
        method=types.LP if method == "lp" else types.FFT,
        clipping=code,
        clip=1.0 if clip is None else clip,
        stabiliser=stabiliser,
        sample_rate=sample_rate,
        threshold=math.ceil(sample_rate * 2**32),
        dt=number(dt),
        noise=number(sigma * math.sqrt(2 * dt / draws)),
        draws=draws,
        folded=folded,
    )


def phase_rule(layout: Layout, phase: Phase, dt: float, draws: int = 1, folded: int = 0) -> OutputsRule:
    """Convert a phase, in steps of ``dt``, to the form of the compiled code."""
    return build_rule(
        layout,
        method=phase.method,
        clip=phase.clip,
        clipping=phase.clipping,
        stabiliser=phase.stabiliser,
        sigma=phase.sigma,
        sample_rate=phase.sample_rate,
        dt=dt,
        draws=draws,
        folded=folded,
    )


def step_flops(layout: Layout, data: OutputsData, schedule: Schedule) -> float:
    """Rough number of multiplications and additions of a step of one path."""
    rate = max(phase.sample_rate for phase in schedule)
    fine_tunes = any(phase.method == "fft" for phase in schedule)
    # an activation that is called costs some 20 ns
    called = 400 if data.phi and fine_tunes else 0
    neuron = 4 * (data.inputs + 2 * data.outputs) + called if fine_tunes else 4 * data.outputs + 4
    return rate * len(data.Y) * data.width * neuron + 50 * layout.size


def freeze_flops(data: OutputsData) -> float:
    """Rough number of multiplications and additions that the features of all samples take."""
    return 2.0 * len(data.Y) * data.inputs * data.width


def _cached_rows(layout: Layout, arrays: int = 2) -> int:
    """Rows of a block so many of whose arrays stay in the cache."""
    row = arrays * layout.ld * np.dtype(layout.dtype).itemsize
    return max(_ACTIVATIONS // row // 16 * 16, 32)


def _rows(layout: Layout, samples: int) -> int:
    """Rows of a block: as many as stay in the cache, or many if the first layer does not."""
    streamed = layout.inputs * layout.ld * np.dtype(layout.dtype).itemsize > _LAYER
    fitting = max(_cached_rows(layout), _STREAMED_ROWS) if streamed else _cached_rows(layout)
    return min(fitting, up(samples, 16))
