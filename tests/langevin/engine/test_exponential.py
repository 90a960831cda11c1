"""The exponential function of compiled code."""

import numba
import numpy as np
import pytest

from langevin.engine.kernels.exponential import exponential
from langevin.engine.kernels.jit import FAST


@numba.njit(**FAST)
def fill(x, out):
    for i in range(x.size):
        out[i] = exponential(x[i])


def computed(x):
    out = np.empty_like(x)
    fill(x, out)
    return out


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float64, -707, 708), (np.float32, -86, 87)])
def test_it_is_exact_to_a_unit_in_the_last_place(dtype, low, high):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 10**5), rng.uniform(-2, 2, 10**5), [0.0]]).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    found, unit = computed(x), np.spacing(exact.astype(dtype))
    assert (np.abs(found - exact) / unit).max() < 1
    # control: off by one place
    assert (np.abs(np.nextafter(found, dtype(np.inf)) - exact) / unit).max() > 1
    assert found[-1] == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_it_stays_within_the_range_of_numbers_and_keeps_nan(dtype):
    largest = np.finfo(dtype).max
    found = computed(np.array([np.nan, np.inf, 1e4, -1e4, -np.inf, largest, -largest], dtype))
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()
    assert (found[[1, 2, 5]] > largest / 4).all()
    assert ((found[[3, 4, 6]] > 0) & (found[[3, 4, 6]] < 4 * np.finfo(dtype).tiny)).all()
