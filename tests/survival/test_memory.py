"""Work that does not fit into memory is foreseen, and refused with the numbers."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import bounds
from langevin import (
    Problem,
    Schedule,
    Weights,
    euler_maruyama,
    gaussian_features,
    linear_teacher,
    orthogonally_separable,
    zero_head,
    zeroth_order,
)

FREE = 40 * 2**20
LP, FFT = Schedule.lp(time=0.02, sigma=0.1, clip=1.0), Schedule.fft(time=0.02, sigma=0.1, clip=1.0)


@pytest.fixture
def little(monkeypatch):
    """A machine with 40 MiB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))


def many(samples: int, width: int) -> tuple[Problem, Weights]:
    problem = orthogonally_separable(samples, 5, rng=0)
    signs = np.where(np.arange(width) % 2, 1.0, -1.0)
    return problem, Weights(signs[:, None] * (problem.X.T @ problem.y), signs)


CALLS = {
    "sandwich": lambda p, w: bounds.sandwich(p, w, FFT),
    "certified_loss": lambda p, w: bounds.certified_loss(p, w, FFT, base="sandwich"),
    "distortion": bounds.distortion,
    "alignment_time": bounds.alignment_time,
    "check_assumptions": bounds.check_assumptions,
    "all observables": lambda p, w: euler_maruyama(
        p, w, FFT, dt=1e-4, paths=100, rng=0, observables=["alignment"]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_too_many_samples_or_neurons(little, name):
    problem, weights = many(3000, 600)
    tracemalloc.start()
    with pytest.raises(MemoryError, match=r"needs [\d.e+]+ GiB, 0.0391 GiB are free: take"):
        CALLS[name](problem, weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # what fits is computed, what does not is not begun
    assert peak < 2 * FREE
    CALLS[name](*many(40, 6))


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_features(10**9, 10),
        lambda: zero_head(10**12),
        lambda: linear_teacher(10**6, 10**6),
        lambda: orthogonally_separable(10**9, 100),
    ],
)
def test_data_and_weights(little, call):
    with pytest.raises(MemoryError, match="GiB are free: take"):
        call()


def test_a_flow_looks_at_no_pairs_of_many_samples(little):
    problem, weights = many(5000, 4)
    # what is loaded once
    zeroth_order(*many(40, 4), LP, times=[0.02])
    tracemalloc.start()
    zeroth_order(problem, weights, LP, times=[0.02])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # its products of all pairs would take 190 MiB
    assert peak < FREE
    with pytest.raises(ValueError, match="looks at all pairs"):
        zeroth_order(problem, weights, LP, times=[0.02], reduce="blocks")
