"""Where training starts: neurons (`Weights`), or their Gram matrix alone (`GramWeights`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin.support import validate
from langevin.support.validate import FloatArray

Method = Literal["lp", "fft"]

# entries of weights that are read at once
BLOCK_ENTRIES = 2**22
# so that the degrees of freedom of their noise are whole numbers of 64 bits
MOST_NEURONS = 10**12


@dataclass(frozen=True, eq=False)
class Weights:
    """Initial parameters of a two-layer network.

    Parameters
    ----------
    W : array_like, shape (h, d)
        First layer; row ``w_j`` is the feature of neuron ``j``. A read-only memory map stays one: reductions
        to few dimensions, such as linear probing's, read it in blocks of rows.
    v : array_like, shape (h,)
        Head.

    Examples
    --------
    >>> Weights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5]).width
    2
    """

    W: FloatArray
    v: FloatArray

    def __init__(self, W: ArrayLike, v: ArrayLike) -> None:
        W, v = validate.array("W", W, 2), validate.array("v", v, 1)
        validate.same_length("W", W, "v", v)
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "v", v)

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.W.shape[0]

    @property
    def dim(self) -> int:
        """Input dimension ``d``."""
        return self.W.shape[1]

    def trained_parameters(self, method: Method) -> int:
        """Number of trained parameters ``p``: ``h`` in LP, ``h d + h`` in FFT."""
        return self.width * (self.dim + 1) if method == "fft" else self.width


@dataclass(frozen=True, eq=False)
class GramWeights(Weights):
    """Initial parameters of a linear network of any width, given by their Gram matrix.

    Outputs, gradient norms and hence the clipped dynamics of a linear net depend on ``[W, v]`` only through
    ``[W, v]^T [W, v]`` (new; theory, section 7c): the rows given here have the Gram matrix of the net of
    ``width`` neurons, and are not themselves its neurons.

    Parameters
    ----------
    W : array_like, shape (r, d)
    v : array_like, shape (r,)
    neurons : int
        The net's width ``h >= r``.

    See Also
    --------
    langevin.gaussian_gram : draws Gaussian features and head of such a net.

    Examples
    --------
    >>> weights = GramWeights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5], neurons=10**9)
    >>> weights.width
    1000000000
    """

    neurons: int

    def __init__(self, W: ArrayLike, v: ArrayLike, neurons: int) -> None:
        super().__init__(W, v)
        neurons = countable("neurons", validate.integer("neurons", neurons, len(self.W)))
        object.__setattr__(self, "neurons", neurons)

    @classmethod
    def from_rows(cls, W: Any, v: Any) -> GramWeights:
        """Read weights in blocks of rows: ``W`` and ``v`` may be larger than memory.

        Parameters
        ----------
        W, v : array_like, shapes (h, d) and (h,)
            Anything with a shape whose slices are arrays: memory maps, HDF5 or Zarr arrays.
        """
        W, v = (
            array if hasattr(array, "shape") else validate.array(name, array, ndim)
            for name, array, ndim in (("W", W, 2), ("v", v, 1))
        )
        if len(W.shape) != 2 or W.shape[0] < 1 or tuple(v.shape) != (W.shape[0],):
            raise ValueError(
                f"W and v must have shapes (h, d) and (h,), got {tuple(W.shape)} and {tuple(v.shape)}"
            )

        def block(rows: slice) -> FloatArray:
            try:
                part = Weights(W[rows], v[rows])
            except ValueError as error:
                raise ValueError(f"in rows {rows.start} to {rows.stop - 1}, {error}") from None
            return np.column_stack([part.W, part.v])

        rows = triangle(block(rows) for rows in blocks_of_rows(W.shape[0], W.shape[1] + 1))
        return cls(rows[:, :-1], rows[:, -1], W.shape[0])

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.neurons


def countable(name: str, neurons: int) -> int:
    """Return ``neurons`` if a Gram matrix can represent that many."""
    if neurons > MOST_NEURONS:
        raise ValueError(f"{name} must be at most {MOST_NEURONS:.0e}, got {neurons}: take fewer")
    return neurons


def blocks_of_rows(count: int, columns: int) -> Iterator[slice]:
    """Cut ``count`` rows of so many ``columns`` into blocks that are read at once."""
    size = max(columns, BLOCK_ENTRIES // columns)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def triangle(blocks: Iterable[FloatArray]) -> FloatArray:
    """Triangular factor ``R`` of the matrix whose blocks of rows these are: ``R^T R`` is its Gram matrix.

    By QR of one block after the other, never from the Gram matrix, whose rounding would hide small rows.
    """
    rows: FloatArray | None = None
    for block in blocks:
        stack = block if rows is None else np.vstack([rows, block])
        rows = np.asarray(np.linalg.qr(stack, mode="r"))
    assert rows is not None
    return rows
