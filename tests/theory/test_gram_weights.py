"""Bounds of linear nets on weights that are known by their Gram matrix alone."""

import numpy as np
import pytest

import bounds
from bounds.distance.approximation import KINDS
from langevin import (
    GramWeights,
    Problem,
    Schedule,
    Weights,
    gaussian_features,
    gaussian_gram,
    gaussian_head,
    linear_teacher,
    orthogonally_separable,
)

PROBLEM = linear_teacher(12, 5, activation="linear", rng=0)
WEIGHTS = Weights(gaussian_features(40, 5, rng=0), gaussian_head(40, rng=1))
GRAM = GramWeights.from_rows(WEIGHTS.W, WEIGHTS.v)
TIMES = np.linspace(0, 0.4, 5)
CLIPPED = Schedule.lp_fft(lp_time=0.2, fft_time=0.2, sigma=1e-3, clip=1.0)
LP = Schedule.lp(time=0.4, sigma=1e-3)
FFT = Schedule.fft(time=0.4, sigma=1e-2)

EXACT = {
    "paper": lambda w: bounds.approximation_error(PROBLEM, w, CLIPPED, TIMES, kind="paper"),
    "monotone": lambda w: bounds.approximation_error(PROBLEM, w, CLIPPED, TIMES, kind="monotone"),
    "lambert": lambda w: bounds.approximation_error(PROBLEM, w, CLIPPED, TIMES, kind="lambert"),
    "expected loss of probing": lambda w: bounds.lp_expected_loss(PROBLEM, w, LP, TIMES),
    "rates": lambda w: bounds.rates(PROBLEM, w, Schedule.lp(time=0.4), TIMES),
}
INTEGRATED = {
    "ode": lambda w: bounds.approximation_error(PROBLEM, w, CLIPPED, TIMES, kind="ode"),
    "certified": lambda w: bounds.certified_loss(PROBLEM, w, CLIPPED, TIMES, base="flow"),
    "conserved rates": lambda w: bounds.conserved_rates(PROBLEM, w, FFT, TIMES),
    "expected loss": lambda w: bounds.fft_expected_loss(PROBLEM, w, FFT, TIMES),
    "localised loss": lambda w: bounds.localised_loss(PROBLEM, w, FFT, TIMES),
}


@pytest.mark.parametrize("name", [*EXACT, *INTEGRATED])
def test_bounds_depend_on_the_gram_matrix_alone(name):
    bound = (EXACT | INTEGRATED)[name]
    ours, theirs, wider = bound(GRAM), bound(WEIGHTS), bound(GramWeights(GRAM.W, GRAM.v, 4000))
    # all is rounding but the integration: 3e-6 across the kinks of clipping, as `bounds.distance.flow` says
    tolerance = 1e-11 if name in EXACT else 1e-5
    assert ours.valid.any()
    assert (ours.valid == theirs.valid).all()
    np.testing.assert_allclose(ours.upper, theirs.upper, rtol=tolerance)
    # the noise of more neurons counts where there is any, beyond the range of the features
    if name not in ("rates", "conserved rates", "expected loss of probing", "localised loss"):
        last = np.flatnonzero(ours.valid & wider.valid)[-1]
        change = wider.upper[last] / ours.upper[last] - 1
        # more neurons also hold the kernel's floor up
        assert (abs(change) if name == "expected loss" else change) > 2 * tolerance


def test_the_first_order_counts_the_noise_of_all_neurons():
    ours, theirs, wider = (
        bounds.first_order_loss(PROBLEM, w, FFT, TIMES).correction
        for w in (GRAM, WEIGHTS, GramWeights(GRAM.W, GRAM.v, 4000))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert (np.abs(wider[1:] - ours[1:]) > 0.01 * np.abs(ours[1:])).all()
    collapsed = Problem([[1.0, 0.5, 0.2, 0, 0], [-1.0, -0.5, -0.2, 0, 0]], [1, -1], "linear")
    ours, theirs = (bounds.first_order_loss(collapsed, w, FFT, TIMES).correction for w in (GRAM, WEIGHTS))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_nothing_is_said_of_neurons():
    problem = orthogonally_separable(12, 4, activation="linear", rng=0)
    weights = gaussian_gram(problem, 10**9, rng=0)
    found = bounds.check_assumptions(problem, weights)
    assert not found.hold
    assert "3.2 collapsed features: unknown: the weights are known by their Gram matrix" in str(found)
    assert found.to_dict()["collapse"] is None
    band = bounds.sandwich(problem, weights, Schedule.fft(time=0.4, clip=1.0), TIMES)
    assert not band.valid.any()
    assert "Gram matrix" in band.reason
    assert not bounds.distortion(problem, weights, clip=1.0).valid


@pytest.mark.parametrize("name", ["conserved_rates", "fft_expected_loss", "localised_loss"])
def test_the_loss_with_k_outputs_depends_on_the_gram_matrix_alone(name):
    rng = np.random.default_rng(0)
    problem = Problem(PROBLEM.X, rng.standard_normal((12, 3)), "linear", "square")
    weights = Weights(WEIGHTS.W, 0.01 * rng.standard_normal((40, 3)))
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.3) if name == "conserved_rates" else FFT
    gram = GramWeights.from_rows(weights.W, weights.v)
    ours, theirs = (getattr(bounds, name)(problem, w, schedule, TIMES) for w in (gram, weights))
    assert ours.valid.all()
    np.testing.assert_allclose(ours.upper, theirs.upper, rtol=1e-6)
    np.testing.assert_allclose(ours.lower, theirs.lower, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dt", [None, 0.02])
def test_the_distance_with_k_outputs_depends_on_the_gram_matrix_alone(kind, dt):
    problem = Problem(PROBLEM.X, np.arange(12) % 3, "linear", "softmax")
    weights = Weights(WEIGHTS.W, 0.1 * np.random.default_rng(0).standard_normal((40, 3)))
    gram = GramWeights.from_rows(weights.W, weights.v)
    ours, theirs, wider = (
        bounds.approximation_error(problem, w, CLIPPED, TIMES, kind=kind, dt=dt).upper
        for w in (gram, weights, GramWeights(gram.W, gram.v, 4000))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert wider[-1] > (1 + 2e-5) * ours[-1]
