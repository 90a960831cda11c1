"""Where training starts: neurons (`Weights`), or their Gram matrix alone (`GramWeights`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin.support import html, validate
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
    v : array_like, shape (h,) or (h, K)
        Head: a number per neuron, or a row of K >= 2 numbers for K outputs. A head of one output is given in
        shape (h,).

    Examples
    --------
    >>> Weights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5]).width
    2
    >>> Weights([[1.0, 0.0], [0.0, 1.0]], [[0.5, -0.5, 0.0], [0.1, 0.2, 0.3]]).outputs_dim
    3
    """

    W: FloatArray
    v: FloatArray

    def __init__(self, W: ArrayLike, v: ArrayLike) -> None:
        W, v = validate.array("W", W, 2), head("v", v)
        validate.same_length("W", W, "v", v)
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "v", v)

    def __repr__(self) -> str:
        """Describe the weights in a line.

        Examples
        --------
        >>> Weights(np.eye(2), [0.5, -0.5]), GramWeights(np.eye(2), [0.5, -0.5], neurons=10**9)
        (Weights(width 2, 2 dimensions), GramWeights(width 1000000000, 2 dimensions))
        """
        outputs = f", K = {self.outputs_dim} outputs" if self.outputs_dim > 1 else ""
        return f"{type(self).__name__}(width {self.width}, {self.dim} dimensions{outputs})"

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"width": self.width, "dimensions": self.dim, "outputs": self.outputs_dim}
        rows["parameters"] = self.trained_parameters("fft")
        return html.table(type(self).__name__, rows)

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.W.shape[0]

    @property
    def dim(self) -> int:
        """Input dimension ``d``."""
        return self.W.shape[1]

    @property
    def outputs_dim(self) -> int:
        """Number of outputs ``K``; 1 for a head of shape (h,)."""
        return 1 if self.v.ndim == 1 else self.v.shape[1]

    def trained_parameters(self, method: Method) -> int:
        """Number of trained parameters ``p``: ``h K`` in LP, ``h d + h K`` in FFT."""
        outputs = self.outputs_dim
        return self.width * (self.dim + outputs) if method == "fft" else self.width * outputs


@dataclass(frozen=True, eq=False, repr=False)
class GramWeights(Weights):
    """Initial parameters of a linear network of any width, given by their Gram matrix.

    Outputs, gradient norms and hence the clipped dynamics of a linear net depend on ``[W, v]`` only through
    ``[W, v]^T [W, v]`` (new; theory, section 7c, for K outputs 7c'): the rows given here have the Gram matrix
    of the net of ``width`` neurons, and are not themselves its neurons.

    Parameters
    ----------
    W : array_like, shape (r, d)
    v : array_like, shape (r,) or (r, K)
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
        W, v : array_like, shapes (h, d) and (h,) or (h, K)
            Anything with a shape whose slices are arrays: memory maps, HDF5 or Zarr arrays.
        """
        W = W if hasattr(W, "shape") else validate.array("W", W, 2)
        v = v if hasattr(v, "shape") else head("v", v)
        shape = tuple(v.shape)
        if len(W.shape) != 2 or W.shape[0] < 1 or shape[:1] != (W.shape[0],) or len(shape) > 2 or 0 in shape:
            raise ValueError(
                f"W and v must have shapes (h, d) and (h,) or (h, K), got {tuple(W.shape)} and {shape}"
            )

        def block(rows: slice) -> FloatArray:
            try:
                part = Weights(W[rows], v[rows])
            except ValueError as error:
                raise ValueError(f"in rows {rows.start} to {rows.stop - 1}, {error}") from None
            return np.column_stack([part.W, part.v])

        dim, columns = W.shape[1], W.shape[1] + math.prod(shape[1:])
        rows = triangle(block(rows) for rows in blocks_of_rows(W.shape[0], columns))
        return cls(rows[:, :dim], rows[:, dim] if len(shape) == 1 else rows[:, dim:], W.shape[0])

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.neurons


def head(name: str, value: ArrayLike) -> FloatArray:
    """Return a head of shape (h,), or (h, K) with K >= 2, as an array of `validate.array`."""
    found = validate.array(name, value, 2 if np.ndim(validate.plain(name, value)) == 2 else 1)
    if found.ndim == 2 and found.shape[1] == 1:
        raise ValueError(f"{name} must have shape (h,) for one output, got {found.shape}: take {name}[:, 0]")
    return found


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
