"""What a step of a network with K outputs works on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from langevin.engine.kernels import types

# losses that have code here; all others are called by their address. One-vs-rest is logistic in each output
LOGISTIC, SQUARE, CALLED, SOFTMAX = types.LOGISTIC, types.SQUARE, types.CALLED, 5
LOSSES = {"logistic": LOGISTIC, "ovr": LOGISTIC, "square": SQUARE, "softmax": SOFTMAX}

# the last two in linear probing alone
MARGIN, COLUMN = 3, 4
CLIPPINGS = {
    None: types.UNCLIPPED,
    "flat": types.FLAT,
    "normalised": types.NORMALISED,
    "margin": MARGIN,
    "column": COLUMN,
}

# a row of the scalar observables that the loop of one output and full batches lacks
WHOLLY_MISALIGNED = types.SCALARS
SCALARS = types.SCALARS + 1

# a step whose number is a multiple of this checks that its state is finite, whatever its batch is
CHECKED_STEPS = 64
# paths of linear probing that read each block of features together, if they can
TOGETHER = 16
# columns of W are updated and given their noise at once in multiples of this: whole tiles of noise
COLUMN_MULTIPLE = 16


class OutputsData(NamedTuple):
    """A problem with K outputs; rows of ``X`` are padded by zeros to whole cache lines.

    Row ``position[i]`` is sample ``i``: batches are drawn for the samples, whatever the order of the rows.
    """

    X: np.ndarray  # (n, k padded)
    Y: np.ndarray  # (n, K): targets, one-hot or -1 and +1 for classes
    labels: np.ndarray  # (n,), int64: classes, for softmax; otherwise (0,)
    # (n,), int64: columns of X up to the last one that is not zero in a row or in one before it
    reach: np.ndarray
    squared_norms: np.ndarray  # (n,)
    position: np.ndarray  # (n,), int64
    permuted: bool  # whether that is another order
    features: np.ndarray  # (n, ld): the features if the first layer is not simulated, otherwise (0, 0)
    inputs: int  # k
    width: int  # h
    outputs: int  # columns of the head: K, or K - 1 in gauge coordinates
    gauge: bool  # whether they are gauge coordinates
    head: int  # slot of the head in theta
    rows: int  # largest number of rows of a block
    frozen_rows: int  # the same where the features are frozen, at most `rows`
    pulled: int  # rows of a product with the head's transpose
    columns: int  # columns of W that are updated at once
    activation: int  # RELU, LINEAR or CALLED
    loss: int
    classes: bool  # whether the targets are classes
    # addresses, for those that are called: see `langevin.engine.kernels.elementwise`
    phi: int
    value: int
    residual: int


class OutputsRule(NamedTuple):
    """The rule of a step in one phase."""

    method: int
    clipping: int
    clip: float
    stabiliser: float
    sample_rate: float  # 1: all samples, and no draw
    threshold: int  # a sample is in the batch if its 32-bit word is below
    dt: Any  # in the state's precision, like noise
    noise: Any  # standard deviation of what one draw adds
    draws: int  # draws per step: more than one where a finer grid's Brownian path is followed
    folded: int  # neurons that are not simulated but folded into the last ones, see `fold_outputs`


class OutputsScratch(NamedTuple):
    """Work space of one thread; ``b`` rows of a block, or a few more."""

    A: np.ndarray  # (b, ld): features
    D: np.ndarray  # (b, ld): phi', then (R V^T) phi'
    G: np.ndarray  # (pulled, ld): R V^T, if the activation is called; otherwise (0, ld)
    X: np.ndarray  # (b, k padded): rows of the batch, then times their clip factors
    # (K, b), or (K - 1, b) in gauge coordinates
    F: np.ndarray
    R: np.ndarray  # residuals, then times their clip factors
    # (2, K, b): outputs and residuals where those are gauge coordinates; otherwise (2, K, 0)
    lifted: np.ndarray
    row: np.ndarray  # (K,): outputs of a sample
    samples: np.ndarray  # (6, b)
    lines: np.ndarray  # (b,), int64: addresses of the rows of features of a block
    neurons: np.ndarray  # (3, ld)
    heads: np.ndarray  # (paths, K, ld): gradients of the heads of paths that step together, or of one
    layer: np.ndarray  # (k, ld): gradient of W on all blocks before the last; (0, ld) where there is one
    features: np.ndarray  # (n, ld): frozen features in linear probing; (0, ld) where it is not run
    batch: np.ndarray  # (n + 1,), int64: rows of the batch, in increasing order
    marks: np.ndarray  # (n,), uint8: 0
    words: np.ndarray  # (4, LANES), uint32
    ints: np.ndarray  # (8,), int32
    scalars: np.ndarray  # (2,): alpha and beta of a product
    # only where neurons are folded: a type of its own, so that other runs do not wait for its compilation
    triangle: np.ndarray | None = None  # (q, ld), q = k + K, by columns
    stack: np.ndarray | None = None  # (q, ld), by columns
    bartlett: np.ndarray | None = None  # (at least q (q - 1) / 2,)
    reflectors: np.ndarray | None = None  # (2, at least REFLECTORS q)


# rows of OutputsScratch.samples: squared norms of the features, of the residuals and of the pulled-back
# residuals, the clip factors; of softmax, the largest output and the probability of the other classes
FEATURE, RESIDUAL, PULLBACK, FACTOR, LARGEST, OTHERS = range(6)
# rows of OutputsScratch.neurons: largest activation, and mean own-class pre-activation now and at the start
ACTIVE, MEAN, START = range(3)
