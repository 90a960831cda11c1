"""Counter-based Brownian increments: one stream per path, independent of threads and chunks.

Draw ``e`` of step ``s`` on path ``p`` is a function of ``(key, p, s, e)`` alone (Philox 4x32-10 and
Box-Muller), so threads, chunks, interruptions and the number of paths cannot change a run. Uniforms
have 32 bits: no draw exceeds 6.77 in absolute value.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from langevin.engine.kernels.normals import LANES, STATE_STREAM, add_normals
from langevin.engine.layout import Layout, aligned_zeros
from langevin.support import validate
from langevin.support.rng import RNG, generator

Precision = Literal["double", "single"]
DTYPES = {"double": np.float64, "single": np.float32}


def key(rng: RNG) -> tuple[int, int]:
    """Two 32-bit words drawn from ``rng``: the key of a run's noise."""
    first, second = generator(rng, "noise").integers(0, 2**32, size=2, dtype=np.uint64)
    return int(first), int(second)


def normals(
    key: tuple[int, int], path: int, step: int, size: int, precision: Precision = "double"
) -> np.ndarray:
    """Standard normals ``0 .. size - 1`` of one step of one path.

    Examples
    --------
    >>> bool((normals((1, 2), 0, 3, 8) == normals((1, 2), 0, 3, 9)[:8]).all())
    True
    """
    dtype = DTYPES[precision]
    tiles = -(-validate.integer("size", size, 1) // (4 * LANES))
    draws = aligned_zeros((tiles * 4 * LANES,), dtype)
    words = np.empty((4, LANES), np.uint32)
    first, second = (np.uint64(word) for word in key)
    add_normals(draws, draws.size, dtype(1), step, path, STATE_STREAM, first, second, words)
    return draws[:size]


def weight_noise(
    key: tuple[int, int],
    path: int,
    step: int,
    width: int,
    inputs: int,
    outputs: int = 1,
    precision: Precision = "double",
) -> tuple[np.ndarray, np.ndarray]:
    """The standard normals that a full chain adds to ``W`` and ``v`` in one step.

    With these, ``theta + b(theta) dt + sigma sqrt(2 dt) xi`` is step ``step`` of
    ``euler_maruyama(..., reduce="none")`` on path ``path``, if ``b`` is that of its batch.

    Returns
    -------
    tuple of ndarray, shapes (width, inputs) and (width,), or (width, outputs) of several
    """
    layout = Layout(inputs, width, DTYPES[precision], outputs)
    W, v = layout.unpack(normals(key, path, step, layout.size, precision))
    return W.copy(), v.copy()
