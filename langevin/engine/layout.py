"""Memory layout of weights and data for the compiled code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from langevin.engine.kernels import elementwise, types
from langevin.engine.kernels.normals import LANES, TILE
from langevin.engine.kernels.types import NEURONS_A_PRODUCT, REFLECTORS, SMALL_PRODUCT, Data, Scratch
from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES
from langevin.support.validate import FloatArray

CACHE_LINE = 64
# a first layer beyond this many bytes streams from memory: better once, by packed products, than per block
STREAMED = 4 * 2**20


def up(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return zeros that start on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Layout:
    """Where one path's parameters lie in its flat state, see `langevin.engine.kernels.loop`.

    Parameters
    ----------
    inputs, width : int
        ``k`` and ``h``.
    dtype : numpy dtype
        float64 or float32.
    outputs : int
        ``K``: columns of the head, each of which takes a row of ``ld`` elements in its slot.
    """

    inputs: int
    width: int
    dtype: Any
    outputs: int = 1

    @property
    def ld(self) -> int:
        """Row length: whole cache lines, and an odd number of them where rows would share cache sets."""
        itemsize = np.dtype(self.dtype).itemsize
        line = CACHE_LINE // itemsize
        ld = up(self.width, line)
        return ld + line if ld * itemsize >= 2048 and ld // line % 2 == 0 else ld

    @property
    def head(self) -> int:
        """Slot of the head."""
        return up(self.outputs * self.ld, TILE)

    @property
    def size(self) -> int:
        """Elements of a state."""
        return self.head + up(self.inputs * self.ld, TILE)

    def pack(self, W: FloatArray, v: FloatArray, theta: np.ndarray) -> None:
        """Write ``W (h, k)`` and ``v``, shape (h,) or (h, K), into a state."""
        self._head_rows(theta)[:, : self.width] = v.T
        self._first_layer(theta)[:, : self.width] = W.T

    def unpack(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of ``W (h, k)`` and ``v``, shape (h,) if there is one output and (h, K) otherwise."""
        head = self._head_rows(theta)[:, : self.width].T
        return self._first_layer(theta)[:, : self.width].T, head[:, 0] if self.outputs == 1 else head

    def _head_rows(self, theta: np.ndarray) -> np.ndarray:
        return theta[: self.outputs * self.ld].reshape(self.outputs, self.ld)

    def _first_layer(self, theta: np.ndarray) -> np.ndarray:
        return theta[self.head : self.head + self.inputs * self.ld].reshape(self.inputs, self.ld)

    def data(
        self, X: FloatArray, y: FloatArray, *, activation: str, loss: str, features: FloatArray | None = None
    ) -> Data:
        """The compiled code's view of a problem with inputs ``X (n, k)``, or with ``features (n, h)``."""
        samples = up(X.shape[0], 4)
        padded = aligned_zeros(
            (samples, up(self.inputs, CACHE_LINE // np.dtype(self.dtype).itemsize)), self.dtype
        )
        padded[: X.shape[0], : self.inputs] = X[:, : self.inputs]
        streamed = self.inputs * self.ld * np.dtype(self.dtype).itemsize > STREAMED
        norms = np.zeros(samples, self.dtype)
        norms[: X.shape[0]] = np.einsum("ij,ij->i", X, X)
        code = types.CODES.get(activation, types.CALLED)
        phi, *of_loss = addresses(activation, None if loss in types.CODES else loss, self.dtype)
        frozen = aligned_zeros((0, 0) if features is None else (samples, self.ld), self.dtype)
        if features is not None:
            frozen[: X.shape[0], : self.width] = features
        return Data(
            padded,
            y.astype(self.dtype),
            norms,
            _row_blocks(padded, self.inputs, streamed),
            _column_blocks(padded, self.inputs, streamed),
            frozen,
            self.inputs,
            self.width,
            self.head,
            types.ACTIVATIONS[code](code, phi),
            types.CODES.get(loss, types.CALLED),
            *of_loss,
        )

    def scratch(self, data: Data, folds: bool = False) -> Scratch:
        """Work space for one thread; ``folds`` where neurons are folded."""
        samples, inputs = data.X.shape
        folding: tuple[Any, ...] = (None,) * 4
        if folds:
            q = self.inputs + 1
            shape = q, up(q + 1, CACHE_LINE // np.dtype(self.dtype).itemsize)
            shapes = shape, shape, (up(q * (q - 1) // 2, TILE),), (2, REFLECTORS * q)
            folding = tuple(aligned_zeros(s, self.dtype) for s in shapes)
        return Scratch(
            aligned_zeros((samples, self.ld), self.dtype),
            aligned_zeros((samples, self.ld) if data.activation.phi else (0, 0), self.dtype),
            aligned_zeros((int(data.columns[:, 1].max(initial=1)), self.ld), self.dtype),
            aligned_zeros((samples, inputs), self.dtype),
            aligned_zeros((3, samples), self.dtype),
            aligned_zeros((7, self.ld), self.dtype),
            aligned_zeros((2, inputs), self.dtype),
            aligned_zeros((4, LANES), np.uint32),
            np.zeros(8, np.int32),
            np.zeros(2, self.dtype),
            *folding,
        )


def addresses(activation: str, loss: str | None, dtype: Any) -> tuple[int, int, int]:
    """Of ``phi``, the loss and its residual; 0 for what the compiled step has of its own."""
    phi = value = residual = 0
    if activation not in types.CODES:
        phi = elementwise.rows(ACTIVATIONS[activation], dtype).address
    if loss is not None:
        value, residual = (
            elementwise.scalar(LOSSES[loss], derivative).address for derivative in (False, True)
        )
    return phi, value, residual


def _block(depth: int, smallest: int) -> int:
    """Rows of a block whose products run over ``depth``: some 4096 elements stay in the first cache."""
    return int(np.clip(round(4096 / depth / 8) * 8, smallest, 128))


def _neurons(rows: int, depth: int, streamed: bool) -> int:
    """Neurons a product of ``rows`` over ``depth``."""
    if streamed:
        return 2**31 - 1
    fitting = SMALL_PRODUCT // (rows * depth) // 8 * 8
    # products this deep lose more by being narrow than they gain by being small
    return min(fitting, NEURONS_A_PRODUCT) if fitting >= 16 else 32


def _row_blocks(X: np.ndarray, inputs: int, streamed: bool) -> np.ndarray:
    if inputs == 0:
        return np.zeros((0, 4), np.int64)
    count = X.shape[0] if streamed else _block(inputs, 16)
    blocks = []
    for first in range(0, X.shape[0], count):
        rows = min(count, X.shape[0] - first)
        used = np.flatnonzero(X[first : first + rows].any(axis=0))
        columns = int(used[-1]) + 1 if used.size else 1
        blocks.append((first, rows, columns, _neurons(rows, columns, streamed)))
    return np.array(blocks, np.int64)


def _column_blocks(X: np.ndarray, inputs: int, streamed: bool) -> np.ndarray:
    samples = X.shape[0]
    count = 256 if streamed else _block(samples, 24)
    blocks = []
    for first in range(0, inputs, count):
        columns = min(count, inputs - first)
        used = np.flatnonzero(X[:, first : first + columns].any(axis=1))
        row = min(int(used[0]), samples - 4) // 4 * 4 if used.size else samples - 4
        blocks.append((first, columns, row, samples - row, _neurons(columns, samples - row, streamed)))
    return np.array(blocks, np.int64).reshape(-1, 5)
