"""Poisson batches of the compiled step: their law, and that they are words of a counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.outputs.batches import draw_batch
from tests.langevin.engine.batches import KEY, members


def batches(n: int, rate: float, steps: int, path: int = 0, position: np.ndarray | None = None) -> np.ndarray:
    """Membership, shape (steps, n), as compiled."""
    batch, words = np.zeros(n + 1, np.int64), np.empty((4, LANES), np.uint32)
    rows = np.arange(n) if position is None else position
    found = np.zeros((steps, n), bool)
    for step in range(steps):
        count = draw_batch(batch, rows, int(np.ceil(rate * 2**32)), step, path, *KEY, words)
        found[step, batch[:count]] = True
    return found


@pytest.mark.parametrize("n", [1, 4, 127, 128, 300])
@pytest.mark.parametrize("rate", [1e-9, 0.05, 0.3, 0.999])
def test_batches_are_words_of_a_counter(n, rate):
    found = batches(n, rate, 6, path=2)
    assert np.array_equal(found, [members(n, rate, 2, step) for step in range(6)])


def dependence(table: np.ndarray) -> float:
    """The p-value of a chi-square test of independence in a table of counts."""
    result: Any = stats.chi2_contingency(table, correction=False)
    return float(result.pvalue)


def counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])


def test_batches_have_their_rate_and_are_independent():
    n, steps, rate = 211, 4000, 0.1
    found, other = batches(n, rate, steps), batches(n, rate, steps, path=1)
    error = np.sqrt(rate * (1 - rate) / found.size)
    assert abs(found.mean() - rate) < 4 * error
    each = (found.sum(axis=0) - steps * rate) / np.sqrt(steps * rate * (1 - rate))
    assert stats.kstest(each, "norm").pvalue > 1e-3
    pairs = {
        "samples": (found[:, :-1], found[:, 1:]),
        "counters": (found[:, :-4], found[:, 4:]),
        "steps": (found[:-1], found[1:]),
        "paths": (found, other),
    }
    for a, b in pairs.values():
        assert dependence(counts(a, b)) > 1e-3
    # control: one step in twenty repeats its batch
    repeated = found[1:].copy()
    repeated[::20] = found[:-1:20]
    assert dependence(counts(found[:-1], repeated)) < 1e-6
    # control: a rate off by a twentieth
    assert abs(batches(n, 1.05 * rate, steps).mean() - rate) > 4 * error
