"""The choice and refusal of reductions, and their common properties: bits, rounding, records."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from langevin import (
    Diverged,
    GramWeights,
    Interrupted,
    Phase,
    Problem,
    Schedule,
    Weights,
    euler_maruyama,
    gaussian_gram,
    gradient_flow,
    linear_teacher,
    orthogonally_separable,
    zeroth_order,
)
from langevin.engine import chain, pool
from langevin.engine.reductions.span import Span
from tests.helpers import random_problem, random_weights

RNG = np.random.default_rng(0)
Y = np.where(np.arange(6) % 3, 1.0, -1.0)
HELD_OUT: dict[str, Any] = dict(X_test=RNG.standard_normal((5, 6)), y_test=[1, -1, 1, 1, -1])
POINTS = random_problem(1, n=4, d=6)
LINEAR = Problem(POINTS.X, POINTS.y, "linear", **HELD_OUT)
RELU = Problem(POINTS.X, POINTS.y, "relu", **HELD_OUT)
COLLAPSED = Problem(Y[:, None] * np.array([0.6, -0.2, 0.5]), Y, "linear")
SEPARABLE = orthogonally_separable(12, 4, rng=0)
LP = Schedule.lp(time=0.2, sigma=0.3, clip=1.0)
FFT = Schedule.fft(time=0.2, sigma=0.3, clip=1.0)
LP_FFT = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.3, clip=1.0)
NEURONS = ["misaligned", "alignment"]


def weights_of(problem: Problem, width: int = 300) -> Weights:
    return random_weights(1, h=width, d=problem.dim, scale=0.3)


def run(problem: Problem, schedule: Schedule, weights: Weights | None = None, **kinds: Any) -> xr.Dataset:
    arguments = {"dt": 0.01, "paths": 5, "rng": 0, **kinds}
    return euler_maruyama(problem, weights or weights_of(problem), schedule, **arguments)


def taken(run: xr.Dataset) -> str:
    return json.loads(run.attrs["config"])["reduction"]


def equal_bits(a: xr.Dataset, b: xr.Dataset) -> bool:
    return all(a[name].values.tobytes() == b[name].values.tobytes() for name in a.data_vars)


@pytest.mark.parametrize(
    ("expected", "problem", "schedule", "kinds"),
    [
        ("span", RELU, FFT, {}),
        ("span", RELU, LP_FFT, {}),
        ("none", SEPARABLE, FFT, {}),
        ("kernel", RELU, LP, {}),
        ("kernel", RELU, LP, {"observables": ["test_accuracy", "knn_accuracy"]}),
        ("kernel", LINEAR, LP, {"noise_dt": 0.005}),
        ("span", RELU, LP, {"observables": NEURONS}),
        ("gram", LINEAR, FFT, {}),
        ("gram", LINEAR, LP_FFT, {"observables": ["test_accuracy", "knn_accuracy"]}),
        ("span", LINEAR, FFT, {"observables": NEURONS}),
        ("span", LINEAR, FFT, {"noise_dt": 0.005}),
        ("collapsed", COLLAPSED, FFT, {}),
        ("gram", COLLAPSED, LP_FFT, {"weights": random_weights(1, h=1000, d=3)}),
        # this would not reduce the number of neurons
        ("span", LINEAR, FFT, {"weights": random_weights(1, h=4, d=6)}),
    ],
)
def test_the_cheapest_sufficient_reduction_is_used(expected, problem, schedule, kinds):
    found = run(problem, schedule, **kinds)
    assert taken(found) == expected
    assert ("misaligned" in found) == (expected in ("none", "span"))


REFUSALS = {
    "gram of a ReLU net": ("gram", RELU, FFT, {}, "needs a linear net"),
    "gram and neurons": ("gram", LINEAR, FFT, {"observables": NEURONS}, "which misaligned, alignment needs"),
    "gram and noise_dt": ("gram", LINEAR, FFT, {"noise_dt": 0.005}, "noise_dt asks for it"),
    "kernel of full fine-tuning": ("kernel", RELU, LP_FFT, {}, "schedule of linear probing alone"),
    "kernel and neurons": ("kernel", RELU, LP, {"observables": ["dead"]}, "simulates no single neurons"),
    "collapsed ReLU net": ("collapsed", SEPARABLE, FFT, {}, "when a neuron of a ReLU net leaves its cone"),
    "spread samples": ("collapsed", LINEAR, FFT, {}, r"all have the same y_i x_i"),
    "collapsed probing": ("collapsed", COLLAPSED, LP_FFT, {}, "schedule of full fine-tuning alone"),
    "one collapsed neuron": (
        "collapsed",
        COLLAPSED,
        FFT,
        {"weights": Weights([[1.0, 0, 0]], [1.0])},
        "needs two neurons",
    ),
    "collapsed classes": (
        "collapsed",
        COLLAPSED,
        FFT,
        {"observables": ["class_accuracy"]},
        "simulates no whole network, which class_accuracy needs",
    ),
    "blocks with noise": ("blocks", SEPARABLE, FFT, {}, "is for the zeroth-order flow: with noise"),
    "blocks of a linear net": ("blocks", LINEAR, FFT, {}, "take 'gram' for a linear net"),
    "neurons of a Gram matrix": (
        "none",
        LINEAR,
        FFT,
        {"weights": GramWeights(np.eye(6), np.ones(6), 99)},
        "needs single neurons",
    ),
    "a GPU": ("gram", LINEAR, FFT, {"device": "cuda"}, "runs on the processor alone"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_reduction_that_does_not_apply_is_refused_with_its_reason(case):
    name, problem, schedule, kinds, reason = REFUSALS[case]
    with pytest.raises(ValueError, match=f"reduce must apply to the run, but '{name}' .*{reason}"):
        run(problem, schedule, reduce=name, **kinds)


def test_weights_without_neurons_are_refused_if_neurons_are_required():
    gram = GramWeights(np.eye(6), np.ones(6), 99)
    with pytest.raises(ValueError, match="weights must hold single neurons for activation 'relu'"):
        run(RELU, FFT, gram)
    with pytest.raises(ValueError, match=r"weights must hold single neurons for this run.*misaligned"):
        run(LINEAR, FFT, gram, observables=NEURONS)
    with pytest.raises(ValueError, match="neurons must be at least 6, got 5"):
        GramWeights(np.eye(6), np.ones(6), 5)
    with pytest.raises(ValueError, match=r"neurons must be at most 1e\+12"):
        GramWeights(np.eye(6), np.ones(6), 10**13)
    with pytest.raises(ValueError, match=r"width must be at most 2\^53"):
        gaussian_gram(LINEAR, 10**30)
    with pytest.raises(ValueError, match="problem must have a linear activation, got 'relu'"):
        gaussian_gram(RELU, 100)
    with pytest.raises(
        ValueError, match=r"W and v must have shapes .* and \(h,\) or \(h, K\), got \(6, 6\) and \(5,\)"
    ):
        GramWeights.from_rows(np.eye(6), np.ones(5))
    with pytest.raises(ValueError, match="in rows 0 to 2, W must be finite, got nan"):
        GramWeights.from_rows(np.full((3, 6), np.nan), np.ones(3))
    with pytest.raises(ValueError, match="weights must hold single neurons, got GramWeights: take Weights"):
        gradient_flow(LINEAR, gram, FFT, dt=0.01)
    assert GramWeights.from_rows([[1.0, 2.0]], [3.0]).width == 1


@pytest.mark.parametrize("schedule", [FFT, LP])
def test_initial_weights_beyond_the_range_of_doubles_are_reported(schedule):
    weights = Weights(np.full((300, 6), 1e200), np.full(300, 1e200))
    with (
        np.errstate(all="ignore"),
        pytest.raises((Diverged, ValueError), match=r"beyond the range of doubles"),
    ):
        run(LINEAR, schedule, weights)


def test_tiny_collapsed_inputs_are_left_to_other_reductions():
    tiny = Problem(COLLAPSED.X * 1e-20, COLLAPSED.y, "linear")
    with pytest.raises(ValueError, match="squared norms even single precision can hold"):
        run(tiny, FFT, reduce="collapsed")
    assert taken(run(tiny, FFT)) != "collapsed"


@pytest.mark.parametrize(
    ("problem", "schedule", "reductions"),
    [
        (LINEAR, LP, ["span", "kernel", "gram"]),
        (RELU, LP, ["span", "kernel"]),
        (LINEAR, FFT, ["span", "gram"]),
        (LINEAR, LP_FFT, ["span", "gram"]),
        (COLLAPSED, FFT, ["span", "gram", "collapsed"]),
    ],
)
@pytest.mark.parametrize(
    ("dt", "width"), [(0.01, 3), (0.01, 300), (None, 3), pytest.param(None, 300, marks=pytest.mark.slow)]
)
def test_noiseless_runs_agree_to_rounding(problem, schedule, reductions, dt, width):
    held_out = [] if problem.X_test is None else ["test_accuracy", "knn_accuracy"]
    weights = weights_of(problem, width)
    ask: dict[str, Any] = dict(dt=dt, rtol=1e-11, atol=1e-13)
    full = zeroth_order(problem, weights, schedule, reduce="none", observables=held_out, **ask)
    for name in reductions:
        if name == "collapsed" and dt is None:
            continue
        asked = [] if name == "collapsed" else held_out
        other = zeroth_order(problem, weights, schedule, reduce=name, observables=asked, **ask)
        assert taken(other) == name
        for variable in other.data_vars:
            np.testing.assert_allclose(
                other[variable], full[variable], rtol=1e-9, atol=1e-10, err_msg=variable
            )


@pytest.mark.parametrize("exponent", [-600, 530])
def test_the_span_of_inputs_whose_squares_leave_the_range_of_doubles(exponent):
    plain, scaled = (Span.of(X) for X in (POINTS.X, np.ldexp(POINTS.X, exponent)))
    assert scaled.dim == 4
    assert np.array_equal(scaled.coordinates(np.eye(6)), plain.coordinates(np.eye(6)))


@pytest.mark.parametrize(("problem", "schedule"), [(LINEAR, LP), (LINEAR, LP_FFT), (COLLAPSED, FFT)])
def test_a_path_without_noise_is_the_euler_path_to_the_bit(problem, schedule):
    quiet = Schedule([replace(phase, sigma=0.0) for phase in schedule])
    ode = zeroth_order(problem, weights_of(problem), schedule, dt=0.01)
    noiseless = run(problem, quiet)
    assert taken(ode) == taken(noiseless) != "none"
    for name in ode.data_vars:
        assert noiseless[name][3].values.tobytes() == ode[name].values.tobytes()
    assert (noiseless.squared_distance == 0).all()


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize(
    ("reduce", "problem", "schedule"),
    [("kernel", RELU, LP), ("gram", LINEAR, LP_FFT), ("collapsed", COLLAPSED, FFT)],
)
def test_threads_chunks_paths_and_interruptions_do_not_change_a_bit(
    monkeypatch, tmp_path, reduce, problem, schedule, precision
):
    ask: dict[str, Any] = dict(precision=precision, reduce=reduce)
    base = run(problem, schedule, threads=1, **ask)
    assert equal_bits(base.isel(path=slice(0, 2)), run(problem, schedule, paths=2, **ask))
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    assert equal_bits(base, run(problem, schedule, threads=2, **ask))
    waits, wait = iter([False, False, True]), pool.wait

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        if next(waits, False):
            raise KeyboardInterrupt
        return wait(*args, **kwargs)

    monkeypatch.setattr(pool, "wait", interrupting)
    with pytest.raises(Interrupted):
        run(problem, schedule, threads=1, checkpoint=tmp_path / "c", **ask)
    assert equal_bits(base, run(problem, schedule, checkpoint=tmp_path / "c", **ask))


def test_any_sequence_of_noisy_and_quiet_phases():
    """Between phases of probing, a quiet one of full fine-tuning moves the features of folded neurons."""
    phases = [Phase("lp", 0.1, 0.5, 1.0), Phase("fft", 0.1, 0.0, 1.0), Phase("lp", 0.1, 0.5, 1.0)]
    weights = weights_of(LINEAR, 40)
    ask: dict[str, Any] = dict(paths=4000, times=[0.1, 0.2, 0.3])
    full = run(LINEAR, Schedule(phases), weights, reduce="none", **ask)
    short = run(LINEAR, Schedule(phases), weights, reduce="gram", **{**ask, "rng": 1})
    for name in ("loss", "displacement", "squared_distance"):
        difference = short[name].mean("path") - full[name].mean("path")
        error = np.sqrt((short[name].var("path") + full[name].var("path")) / 4000)
        assert (abs(difference) < 4.5 * error).all(), name
        # negative control
        assert (abs(difference + 0.1 * full[name].std("path")) > 4.5 * error).all(), name


def test_divergence_is_named():
    problem = linear_teacher(8, 4, activation="linear", rng=0)
    with pytest.raises(Diverged, match=r"4 of 4 paths diverged.*take dt <="):
        run(problem, Schedule.fft(time=100.0, sigma=0.1), weights_of(problem), dt=1.0, paths=4, reduce="gram")


@pytest.mark.parametrize("schedule", [LP, FFT])
def test_a_hundred_thousand_inputs(schedule):
    """No array of the size of their square is allocated."""
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((3, 10**5)) / 300, [1, -1, 1])
    found = run(problem, schedule, random_weights(0, h=4, d=10**5, scale=0.01))
    assert taken(found) in ("kernel", "span")
    assert np.isfinite(found.loss).all()


# --- weights that are not held in memory -------------------------------------------------------


def test_weights_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("langevin.model.weights.BLOCK_ENTRIES", 7 * 7)
    W, v = RNG.standard_normal((40, 6)), RNG.standard_normal(40)
    np.save(tmp_path / "W.npy", W)
    gram = GramWeights.from_rows(np.load(tmp_path / "W.npy", mmap_mode="r"), v)
    Theta, rows = np.column_stack([W, v]), np.column_stack([gram.W, gram.v])
    assert gram.width == 40
    assert rows.shape == (7, 7)
    np.testing.assert_allclose(rows.T @ rows, Theta.T @ Theta, rtol=1e-12, atol=1e-12)
    for schedule in (LP, LP_FFT):
        a, b = (zeroth_order(LINEAR, w, schedule, dt=0.01) for w in (gram, Weights(W, v)))
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-11)


@pytest.mark.parametrize(("problem", "schedule"), [(RELU, LP), (LINEAR, LP_FFT)])
def test_a_memory_map_is_not_copied(tmp_path, problem, schedule):
    weights = weights_of(problem)
    np.save(tmp_path / "W.npy", weights.W)
    mapped = Weights(np.load(tmp_path / "W.npy", mmap_mode="r"), weights.v)
    assert isinstance(mapped.W.base, np.memmap) or isinstance(mapped.W, np.memmap)
    assert equal_bits(run(problem, schedule, mapped), run(problem, schedule, weights))
    # a writable array is copied
    assert not np.shares_memory(Weights(weights.W, weights.v).W, weights.W)


def test_fewer_neurons_than_columns():
    W, v = RNG.standard_normal((3, 6)), RNG.standard_normal(3)
    gram = GramWeights.from_rows(W, v)
    assert gram.width == len(gram.W) == 3


@pytest.mark.parametrize("schedule", [LP, FFT, LP_FFT])
def test_a_billion_neurons(schedule):
    """The noise of 10^9 neurons moves the parameters by sigma sqrt(2 t p), as it should."""
    problem = linear_teacher(16, 6, activation="linear", rng=0)
    h, sigma = 10**9, 1.0
    loud = Schedule([replace(phase, sigma=sigma) for phase in schedule])
    found = run(problem, loud, gaussian_gram(problem, h, rng=0), paths=400, times=[0.2])
    assert taken(found) == ("kernel" if schedule is LP else "gram")
    noise = sum(2 * sigma**2 * p.time * h * (7 if p.method == "fft" else 1) for p in schedule)
    squared = found.squared_distance.values[:, 0] / noise
    # two clipped drifts differ by 2 n C t at most, which is small compared with the noise
    pull = 2 * problem.samples * 1.0 * 0.2 / noise**0.5
    tolerance = 4.5 * squared.std() / 400**0.5 + 2 * pull + pull**2
    assert abs(squared.mean() - 1) < tolerance
    # negative control
    assert abs(squared.mean() - 1.1) > tolerance
