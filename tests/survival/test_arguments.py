"""Every argument of every public function, replaced by what it should not be: refused by name, or taken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bounds
import langevin
from langevin import (
    DPSGD,
    GramWeights,
    Phase,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    orthogonally_separable,
)
from langevin.store import files
from tests.survival.outcomes import TRIALS, attempt

JUNK = [
    *(None, "text", "", "a\0b", b"x", True, -1, 0, 1.5, float("nan"), float("inf"), -float("inf"), 10**400),
    *(1j, [], {}, (), [[]], object(), np.array([]), np.array(["a"]), np.array([np.nan]), np.zeros((2, 3, 4))),
    *(np.array([1, 2], dtype=object), [1, [2, 3]], len, int, range(3), {1, 2}, 2**70, -(2**70), [None]),
    *(np.int64(3), np.float32(1.5), np.datetime64("2020"), Path("nowhere"), 1e-300, 1e300, 5e-324),
    *(np.ma.masked, np.ma.masked_equal([1.0, 2.0], 2.0), np.array([1, 2], "m8[s]"), np.complex64(1j)),
]
VALUES = st.one_of(
    st.sampled_from(JUNK),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=4),
    st.lists(st.lists(st.floats(), max_size=3), max_size=3),
)

RELU = Problem([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]], [1, -1, 1])
LINEAR = Problem([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]], [1, -1, 1], "linear", "square")
WEIGHTS = Weights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5])
SCHEDULE, FFT = (
    Schedule.lp_fft(lp_time=0.2, fft_time=0.2, sigma=0.3, clip=1.0),
    Schedule.fft(time=0.2, sigma=0.3),
)
BATCHES = Schedule.lp(time=0.2, sigma=0.3, clip=1.0, sample_rate=0.1)
SEPARABLE = orthogonally_separable(6, 3, rng=0)
HELD_OUT = Problem(LINEAR.X, LINEAR.y, "linear", "square", LINEAR.X, LINEAR.y)
FULL_BATCH = DPSGD(0.1, 1.0, 1.0, 10)

_run: dict[str, Any] = dict(problem=RELU, weights=WEIGHTS, schedule=SCHEDULE, times=[0.0, 0.4])
_linear: dict[str, Any] = dict(problem=LINEAR, weights=WEIGHTS, schedule=FFT, times=[0.0, 0.2])
_probed: dict[str, Any] = dict(
    problem=HELD_OUT, weights=WEIGHTS, schedule=Schedule.lp(time=0.2, sigma=0.3), times=[0.0, 0.2], dt=0.1
)
_flow = dict(_run, observables=["alignment"], rtol=1e-6, atol=1e-6, precision="double", reduce="auto")
_draw = dict(activation="relu", test_samples=2, rng=0)
_split = dict(problem=RELU, weights=WEIGHTS, sigma=0.5, clip=1.0, neighbours="replace")
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Problem": (
        Problem,
        dict(X=[[1.0], [2.0]], y=[1, -1], activation="relu", loss="logistic", X_test=[[1.0]], y_test=[1]),
    ),
    "Problem of classes": (
        Problem,
        dict(
            X=[[1.0], [2.0]], y=["a", "b"], loss="softmax", X_test=[[1.0]], y_test=["b"], classes=["b", "a"]
        ),
    ),
    "Weights": (Weights, dict(W=[[1.0, 0.0]], v=[1.0])),
    "GramWeights": (GramWeights, dict(W=[[1.0, 0.0]], v=[1.0], neurons=10)),
    "from_rows": (GramWeights.from_rows, dict(W=[[1.0, 0.0]], v=[1.0])),
    "Phase": (
        Phase,
        dict(method="lp", time=1.0, sigma=0.1, clip=1.0, clipping="flat", stabiliser=0.1, sample_rate=0.1),
    ),
    "Schedule": (Schedule, dict(phases=[Phase("lp", 1.0)])),
    "lp_fft": (Schedule.lp_fft, dict(lp_time=1.0, fft_time=1.0, sigma=0.1, clip=1.0)),
    "time_in": (SCHEDULE.time_in, dict(times=[0.0, 0.1])),
    "DPSGD": (
        DPSGD,
        dict(learning_rate=0.1, noise_multiplier=1.0, clip=1.0, steps=10, sample_rate=0.1, samples=100),
    ),
    "from_phase": (
        DPSGD.from_phase,
        dict(phase=Phase("lp", 1.0, 0.1, 1.0, sample_rate=0.1), dt=0.1, samples=100),
    ),
    "euler_maruyama": (
        langevin.euler_maruyama,
        dict(_run, dt=0.1, paths=2, rng=0, observables=["alignment"], precision="double", reduce="auto")
        | dict(threads=1, device="cpu", noise_dt=0.05, checkpoint=None),
    ),
    "zeroth_order": (langevin.zeroth_order, dict(_flow, dt=0.1)),
    "zeroth_order, adaptive": (langevin.zeroth_order, dict(_flow)),
    "gradient_flow": (
        langevin.gradient_flow,
        dict(problem=RELU, weights=WEIGHTS, schedule=SCHEDULE, dt=0.1),
    ),
    "orthogonally_separable": (
        orthogonally_separable,
        dict(_draw, samples=4, dim=3, classes=2, spread=0.1, angle=135.0, loss="logistic"),
    ),
    "linear_teacher": (langevin.linear_teacher, dict(_draw, samples=4, dim=3, noise=0.1)),
    "from_file": (
        langevin.from_file,
        dict(path="nowhere.csv", label="y", activation="relu", loss="logistic"),
    ),
    "from_npz": (langevin.from_npz, dict(path="nowhere.npz", activation="relu", loss="logistic")),
    "collapsed_features": (
        collapsed_features,
        dict(problem=SEPARABLE, width=4, spread=0.1, scale=1.0, head_scale=1.0, rng=0),
    ),
    "gaussian_features": (langevin.gaussian_features, dict(width=4, dim=3, scale=1.0, rng=0)),
    "gaussian_gram": (
        langevin.gaussian_gram,
        dict(problem=LINEAR, width=4, scale=1.0, head_scale=1.0, rng=0),
    ),
    "gaussian_head": (langevin.gaussian_head, dict(width=4, scale=1.0, outputs=2, rng=0)),
    "zero_head": (langevin.zero_head, dict(width=4, outputs=2)),
    "prototype_head": (langevin.prototype_head, dict(problem=RELU, W=WEIGHTS.W, scale=1.0)),
    "store.load": (files.load, dict(path="nowhere.nc")),
    "approximation_error": (bounds.approximation_error, dict(_run, kind="ode", dt=0.1)),
    "lipschitz_error": (bounds.lipschitz_error, dict(_run, constant=1.0)),
    "norm_tail": (
        bounds.norm_tail,
        dict(problem=LINEAR, weights=WEIGHTS, schedule=FFT, time=0.1, level=[4.0, 9.0], over="time"),
    ),
    "lp_expected_loss of the chain": (bounds.lp_expected_loss, _probed),
    "lp_expected_test_loss": (bounds.lp_expected_test_loss, _probed),
    "lp_expected_accuracy": (bounds.lp_expected_accuracy, _probed),
    "lp_stability": (
        bounds.lp_stability,
        dict(problem=LINEAR, weights=WEIGHTS, sample_rate=0.5, dt=0.01, sigma=0.1),
    ),
    "probing_forecast": (
        bounds.probing_forecast,
        dict(A=RELU.X, y=[0, 1, 0], A_test=RELU.X, y_test=[0, 1, 0], epsilon=1.0, delta=1e-5)
        | dict(normalise=True, criterion="loss", sample_rates=[0.5], steps=[2], clips=[1.0]),
    ),
    "distortion": (bounds.distortion, dict(problem=RELU, weights=WEIGHTS, clip=1.0)),
    "alignment_time": (bounds.alignment_time, dict(problem=RELU, weights=WEIGHTS, clip=1.0)),
    "drift_of_expectation": (bounds.drift_of_expectation, dict(problem=RELU, weights=WEIGHTS, clip=1.0)),
    "check_assumptions": (bounds.check_assumptions, dict(problem=RELU, weights=WEIGHTS)),
    "zcdp": (bounds.zcdp, dict(schedule=SCHEDULE, neighbours="replace")),
    "epsilon": (bounds.epsilon, dict(schedule=SCHEDULE, delta=1e-5, neighbours="replace")),
    "delta": (bounds.delta, dict(schedule=SCHEDULE, epsilon=1.0, neighbours="replace")),
    "epsilon of batches": (bounds.epsilon, dict(schedule=BATCHES, delta=1e-5, dt=0.1)),
    "delta of batches": (bounds.delta, dict(schedule=BATCHES, epsilon=1.0, dt=0.1)),
    "renyi": (bounds.renyi, dict(schedule=SCHEDULE, orders=[2.0, 3.0], neighbours="replace")),
    "gdp_delta": (bounds.gdp_delta, dict(mu=1.0, epsilon=1.0)),
    "gdp_epsilon": (bounds.gdp_epsilon, dict(mu=1.0, delta=1e-5)),
    "calibrate": (bounds.calibrate, dict(schedule=SCHEDULE, solve="sigma", epsilon=1.0, delta=1e-5)),
    "calibrate of batches": (
        bounds.calibrate,
        dict(schedule=BATCHES, solve="time", epsilon=20.0, delta=1e-5, dt=0.01),
    ),
    "last_iterate_gdp": (
        bounds.last_iterate_gdp,
        dict(weight_decay=1.0, sigma=1.0, clip=0.5, lp_time=1.0, fft_time=0.5, dt=0.05, loss="softmax")
        | dict(outputs_dim=3, clipping="flat", feature_norm=1.0, samples=4, neighbours="replace"),
    ),
    "dpsgd_gdp": (bounds.dpsgd_gdp, dict(phases=[FULL_BATCH], neighbours="replace")),
    "dpsgd_epsilon": (bounds.dpsgd_epsilon, dict(phases=FULL_BATCH, delta=1e-5)),
    "minimum_lp_share": (bounds.minimum_lp_share, dict(_split, rho=0.1)),
    "utility_curve": (
        bounds.utility_curve,
        dict(_split, time=0.2, shares=[0.0, 1.0], bounds=("sandwich",), tolerance=0.05),
    ),
    "lp_crossover": (
        bounds.lp_crossover,
        dict(problem=SEPARABLE, weights=collapsed_features(SEPARABLE, 4, rng=0), time=1.0, clip=None),
    ),
    "Band": (bounds.Band, dict(times=[0.0, 1.0], lower=0.0, upper=[1.0, 2.0], valid=True)),
    "contains": (bounds.Band([0.0, 1.0], 0, 1, True, "", "new").contains, dict(curve=[0.5, 0.5], slack=0.0)),
}
CALLS["Band"][1].update(reason="", source="new")
for _name in (
    *("sandwich", "rates", "conserved_rates", "lp_expected_loss", "fft_expected_loss", "localised_loss"),
    *("first_order_loss", "certified_loss", "expected_norm", "lp_expected_head"),
):
    CALLS[_name] = getattr(bounds, _name), _linear


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_are_right_as_they_are(name):
    """Else what follows would test nothing."""
    function, given_ = CALLS[name]
    _, why = attempt(lambda: function(**given_))
    assert not why or "nowhere" in why


def try_anything(function, right, examples=25):
    """Replace one argument at a time by values of any kind."""

    @given(st.sampled_from(sorted(right)), VALUES)
    @settings(max_examples=examples * TRIALS)
    def replaced(argument, value):
        attempt(lambda: function(**{**right, argument: value}))

    replaced()


@pytest.mark.parametrize("name", CALLS)
def test_any_argument_may_be_anything(name):
    try_anything(*CALLS[name])
