"""The clock of the sandwich as a quadrature: against closed forms, across kinks and exits."""

import numpy as np
import pytest

from bounds.support.quadrature import solve

TIMES = np.concatenate([[0.0], np.geomspace(1e-4, 50.0, 200)])


def decay(S):
    """``S = log(1 + t)``."""
    return np.exp(-S)


def kinked(S):
    """``S = t`` up to 1, then ``log`` of it, and a third from 2 on."""
    return np.minimum(1.0, np.exp(1 - S)) * np.where(S > 2, 1 / 3, 1.0)


def kinked_solution(t):
    late = 2 + np.log1p((t - np.e) / (3 * np.e))
    return np.where(t <= 1, t, np.where(t <= np.e, 1 + np.log(np.maximum(t, 1)), late))


@pytest.mark.parametrize(
    ("rate", "solution"),
    [
        (decay, np.log1p),
        (lambda S: 1 + S, np.expm1),
        (lambda S: np.full(S.shape, 3.0), lambda t: 3 * t),
        (lambda S: np.maximum(1 - S, 0.0), lambda t: -np.expm1(-t)),
        (lambda S: 1e-200 * np.exp(-S), lambda t: 1e-200 * t),
        (kinked, kinked_solution),
    ],
)
def test_closed_forms(rate, solution):
    np.testing.assert_allclose(solve(rate, TIMES), solution(TIMES), rtol=1e-7, atol=0)


def test_a_wrong_rate_is_seen():
    found = solve(lambda S: decay(S) * (1 + 1e-5), TIMES)
    assert (np.abs(found[1:] / np.log1p(TIMES[1:]) - 1) > 1e-6).all()


def test_times_beyond_the_limit_are_not_reached():
    found = solve(decay, TIMES, limit=1.0)
    assert (np.isfinite(found) == (np.log1p(TIMES) <= 1.0)).all()


@pytest.mark.parametrize("last", [1e-3, 0.3, 2.0])
def test_times_beyond_the_admitted_values_are_not_reached(last):
    found = solve(decay, TIMES, allowed=lambda S: last >= S)
    assert (np.isfinite(found) == (np.log1p(TIMES) <= last)).all()
    np.testing.assert_allclose(found[found <= last], np.log1p(TIMES)[found <= last], rtol=1e-7)


def test_nothing_moves_at_rate_zero():
    assert not solve(lambda S: np.zeros(S.shape), TIMES).any()
    assert solve(decay, TIMES[:3], allowed=lambda S: S < 0).tolist() == [0.0, np.inf, np.inf]
