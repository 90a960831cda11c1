"""What a step works on: named tuples of arrays, and the names of their rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# columns of a triangle up to which our reflections are faster than LAPACK's, which take so many at once
HOUSEHOLDER, REFLECTORS = 48, 16
# OpenBLAS multiplies without packing, at full speed, while m n k stays below the first number
SMALL_PRODUCT, NEURONS_A_PRODUCT = 1_000_000, 128

LP, FFT = 0, 1
UNCLIPPED, FLAT, NORMALISED = 0, 1, 2
# activations and losses that have code here; all others are called by their address
RELU, LINEAR, LOGISTIC, SQUARE, CALLED = range(5)
CODES = {"relu": RELU, "linear": LINEAR, "logistic": LOGISTIC, "square": SQUARE}


class Relu(NamedTuple):
    """An activation in the step loop of one output, by its type: code of the others is not compiled."""

    code: int
    phi: int  # address, see `langevin.engine.kernels.elementwise`


class Linear(NamedTuple):
    """Like `Relu`."""

    code: int
    phi: int


class Called(NamedTuple):
    """Like `Relu`."""

    code: int
    phi: int


ACTIVATIONS = {RELU: Relu, LINEAR: Linear, CALLED: Called}


def activation_of(data: Any) -> type:
    """The class of the activation in a numba type of `Data`."""
    return data.types[data.fields.index("activation")].instance_class


# rows of the scalar observables
LOSS, ACCURACY, DISPLACEMENT, DISTANCE, MISALIGNED, DISTORTED, DEAD = range(7)
SCALARS = 7
# rows of the per-neuron observables
# s_j v_j with one output; with K the distance of the head to the aligned cone
ALIGNMENT, PREACTIVATION, HEAD_ALIGNMENT = range(3)
NEURON_ROWS = 3


class Data(NamedTuple):
    """A problem in span coordinates, its rows padded by zeros to a multiple of four.

    ``rows`` lists the blocks of samples ``(first row, rows, columns, neurons)`` and ``columns`` the
    blocks of inputs ``(first column, columns, first row, rows, neurons)`` whose products are taken at
    once, ``neurons`` at a time; columns or rows that are zero throughout a block are left out.
    """

    X: np.ndarray  # (n padded, k padded)
    y: np.ndarray  # (n,)
    squared_norms: np.ndarray  # (n,)
    rows: np.ndarray  # (blocks, 4), int64
    columns: np.ndarray  # (blocks, 5), int64
    features: np.ndarray  # (n padded, ld): the features if only the head is simulated, otherwise (0, 0)
    inputs: int  # k
    width: int
    head: int  # slot of the head in theta
    activation: Relu | Linear | Called
    loss: int  # LOGISTIC, SQUARE or CALLED
    # addresses, for a loss that is called: see `langevin.engine.kernels.elementwise`
    value: int
    residual: int


class Rule(NamedTuple):
    """The rule of a step in one phase."""

    method: int
    clipping: int
    clip: float
    stabiliser: float
    dt: Any  # in the state's precision, like noise
    noise: Any  # standard deviation of what one draw adds
    draws: int  # draws a step: more than one where a finer grid's Brownian path is followed
    folded: int  # neurons that are not simulated but folded into the last ones, see `_fold`


class Scratch(NamedTuple):
    """Work space of one thread."""

    Z: np.ndarray  # (n padded, ld): pre-activations, then phi'; in linear probing the features
    A: np.ndarray  # (n padded, ld): phi, where it is called; otherwise (0, 0)
    P: np.ndarray  # (columns of a block, ld): X^T diag(s) phi', unless the net is linear
    X: np.ndarray  # like Data.X: its rows times s
    samples: np.ndarray  # (3, n padded): outputs, squared norms of gradient / residual, clipped residuals
    neurons: np.ndarray  # (7, ld)
    inputs: np.ndarray  # (2, k padded)
    words: np.ndarray  # (4, LANES), uint32
    ints: np.ndarray  # (8,), int32
    scalars: np.ndarray  # (2,): alpha and beta of a product
    # only where neurons are folded: a type of its own, so that other runs do not wait for its compilation
    triangle: np.ndarray | None  # (q, ld), q = k + 1, by columns
    stack: np.ndarray | None  # (q, ld), by columns
    bartlett: np.ndarray | None  # (at least q (q - 1) / 2,)
    reflectors: np.ndarray | None  # (2, at least REFLECTORS q)


OUTPUT, NORM, RESIDUAL = range(3)
GRADIENT, HEAD, ACTIVE, NEGATIVE_MEAN, POSITIVE_MEAN, SQUARED, START = range(7)
PROJECTION, PULLBACK = range(2)


class Records(NamedTuple):
    """The observables and their record steps."""

    steps: np.ndarray  # (m,), int64
    origin: np.ndarray  # theta at time 0
    reference: np.ndarray  # (m, size): the zeroth-order path; (0, 0): no distance is wanted
    own: np.ndarray  # (h,): own class of each neuron, -1 or +1, or its number; (0,): no neurons are observed
    means: np.ndarray  # (classes, k): mean input of the classes -1 and +1, or of all in order
    mean_norms: np.ndarray  # (classes,)
    complement_norms: np.ndarray  # (h,): norm of w_j outside the span at time 0
    # of what moves outside the state: process j is of kind j, or of the last one
    complement_dims: np.ndarray  # (kinds,), int64: dimensions of a process
    complement_scales: np.ndarray  # (kinds, m): deviation of a coordinate's move since the last record


@intrinsic
def borrow(typing_context, value):
    """Return the named tuple with arrays without owner: reference counting costs a quarter of a step."""

    def codegen(context, builder, signature, args):
        result = args[0]
        for i, kind in enumerate(value):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, builder.extract_value(result, i))
                array.meminfo = cgutils.get_null_value(array.meminfo.type)
                array.parent = cgutils.get_null_value(array.parent.type)
                result = builder.insert_value(result, array._getvalue(), i)
        return result

    return value(value), codegen
