"""Products with few columns, for processors with shorter vectors, too."""

# pyright: reportCallIssue=false

import numba
import numpy as np
import pytest

from langevin.engine.kernels.outputs import narrow
from langevin.engine.layout import aligned_zeros

# neurons of two strips, of which the second is no whole number of tiles
NEURONS = {np.float64: 568, np.float32: 1136}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("vector", [16, 32, 64])
def test_products_are_exact_on_whole_numbers(vector, dtype, monkeypatch):
    monkeypatch.setattr(narrow, "VECTOR_BYTES", vector)
    monkeypatch.setattr(narrow, "TILE_BYTES", 4 * vector)
    add_outputs, add_gradient, add_edge = narrow.add_outputs, narrow.add_gradient, narrow.add_gradient_edge
    size, tile = np.dtype(dtype).itemsize, 4 * vector

    @numba.njit
    def multiply(A, lines, V, F, R, G, columns, more):
        at, ld, b = lines.ctypes.data, V.shape[1] * size, F.shape[1] * size
        v, f, r, g = V.ctypes.data, F.ctypes.data, R.ctypes.data, G.ctypes.data
        for first, stop in ((0, 4096), (4096, ld)):
            add_outputs(A, columns, at, first, v + first, ld, f, b, stop - first, more or first)
        for first in range(0, ld // tile * tile, tile):
            add_gradient(A, columns, at, first, r, b, g + first, ld, lines.size, more)
        for first in range(ld // tile * tile, ld, vector):
            add_edge(A, columns, at, first, r, b, g + first, ld, lines.size, more)

    random, neurons = np.random.default_rng(0), NEURONS[dtype]
    A, V, G = (aligned_zeros((rows, neurons), dtype) for rows in (9, narrow.COLUMNS, narrow.COLUMNS))
    F, R = aligned_zeros((2, narrow.COLUMNS, 4), dtype)
    for array in (A, V, R):
        array[:] = random.integers(-9, 10, array.shape)
    rows = np.array([7, 0, 3, 8])
    lines = A.ctypes.data + rows * neurons * size
    for columns in range(1, narrow.COLUMNS + 1):
        F[:], G[:] = 1, 1
        for turn in range(2):
            multiply(A, lines, V, F, R, G, columns, turn)
        assert (F[:columns] == 2 * V[:columns] @ A[rows].T).all()
        assert (G[:columns] == 2 * R[:columns] @ A[rows]).all()
        # what belongs to other columns is left alone
        assert (F[columns:] == 1).all()
        assert (G[columns:] == 1).all()
