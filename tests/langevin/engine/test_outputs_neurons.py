"""Neurons of K outputs and batches against their definitions on the states, and class by class."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from langevin import Diverged, Problem, Schedule, Weights, euler_maruyama, gradient_flow, zeroth_order
from langevin.engine import noise
from langevin.engine.chain import Chain, follow
from langevin.engine.kernels.outputs.loop import advance_outputs
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.model.observables import OBSERVABLES
from langevin.model.steps import grid
from langevin.store import files
from langevin.support.threads import one_blas_thread
from tests.helpers import end_states

RNG = np.random.default_rng(11)
X, TEST = RNG.standard_normal((17, 6)), RNG.standard_normal((9, 6))
NAMES = np.array(["elk", "ape", "cow", "gnu"])
Y, Y_TEST = NAMES[np.arange(17) % 4], NAMES[np.arange(9) % 3]
WEIGHTS = Weights(0.5 * RNG.standard_normal((23, 6)), 0.5 * RNG.standard_normal((23, 4)))
SHARES = ["misaligned", "wholly_misaligned", "distorted", "dead"]
ROWS = ["alignment", "preactivation", "cone_distance"]
SCHEDULES = {
    "lp": Schedule.lp(time=0.2, sigma=0.3, clip=1.0),
    "fft": Schedule.fft(time=0.2, sigma=0.3, clip=1.0),
    "lp batches": Schedule.lp(time=0.2, sigma=0.3, clip=1.0, sample_rate=0.3),
    "lp-fft batches": Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.3, clip=1.0, sample_rate=0.3),
}


def several(loss: str = "softmax", activation: str = "relu") -> tuple[Problem, Weights]:
    """Four classes; the last neuron is dead, the one before wholly misaligned, and one aligned."""
    W, V = WEIGHTS.W.copy(), WEIGHTS.v.copy()
    W[-1] = -20 * np.eye(6)[0]
    points = X.copy()
    points[:, 0] = 1 + abs(points[:, 0])
    problem = Problem(points, Y, activation, loss, TEST, Y_TEST)
    for neuron, head in ((-2, 3.0), (-3, -2.0)):
        V[neuron] = head
        V[neuron, OwnClasses(problem, W).numbers[neuron]] = -head
    return problem, Weights(W, V)


class OwnClasses:
    """Own class of each neuron and mean input of its class, by loops."""

    def __init__(self, problem: Problem, W: np.ndarray) -> None:
        labels = sorted(set(problem.y.tolist()))
        means = [problem.X[problem.y == c].mean(axis=0) for c in labels]
        responses = [problem.features(W)[problem.y == c].mean(axis=0) for c in labels]
        self.numbers = np.argmax(responses, axis=0)
        self.labels = np.array(labels)[self.numbers]
        self.means = np.array(means)[self.numbers]


def conditions(problem: Problem, V: np.ndarray, own: OwnClasses) -> list[np.ndarray]:
    """Which conditions of its cone the head of each neuron breaks, from the definition."""
    found = []
    for v, c, label in zip(V, own.numbers, own.labels, strict=True):
        if V.ndim == 1:
            found.append(np.array([label * v < 0]))
        elif problem.loss == "softmax":
            found.append(np.array([v[k] > v[c] for k in range(len(v)) if k != c]))
        else:
            found.append(np.array([v[k] < 0 if k == c else v[k] > 0 for k in range(len(v))]))
    return found


def distance(problem: Problem, v: np.ndarray, c: int) -> float:
    """From a head to the aligned cone, on a fine grid of what the own class is raised to."""
    if problem.loss == "ovr":
        return float(np.linalg.norm([min(v[k], 0) if k == c else max(v[k], 0) for k in range(len(v))]))
    b = np.linspace(v.min(), v.max(), 20001)
    squares = np.maximum(b - v[c], 0) ** 2
    squares += sum(np.maximum(v[k] - b, 0) ** 2 for k in range(len(v)) if k != c)
    return float(np.sqrt(squares.min()))


def expected(problem: Problem, start: np.ndarray, W: np.ndarray, V: np.ndarray) -> dict[str, Any]:
    """All observables of neurons at a state."""
    own = OwnClasses(problem, start)
    broken = conditions(problem, V, own)
    z = problem.X @ W.T
    now, before = (np.einsum("jd,jd->j", own.means, rows) for rows in (W, start))
    lengths = np.linalg.norm(W, axis=1) * np.linalg.norm(own.means, axis=1)
    found = {
        "misaligned": np.mean([any(b) for b in broken]),
        "wholly_misaligned": np.mean([all(b) for b in broken]),
        # what has not moved is not distorted
        "distorted": (now < before - 1e-13).mean(),
        "dead": (z <= 0).all(axis=0).mean() if problem.activation == "relu" else 0.0,
        "alignment": now / lengths,
        "preactivation": now,
    }
    if V.ndim == 2:
        found["cone_distance"] = [distance(problem, v, c) for v, c in zip(V, own.numbers, strict=True)]
    else:
        found["head_alignment"] = own.labels * V
        found["cone_distance"] = np.where(own.labels * V < 0, abs(V), 0)
    return found


def assert_seen(run: xr.Dataset, found: dict[str, Any], rtol: float = 1e-10) -> None:
    """The run, at one path and time, holds these observables."""
    for name, value in found.items():
        if name in run:
            # the grid of `distance` is that fine
            close = rtol if name != "cone_distance" else 1e-4
            np.testing.assert_allclose(run[name], value, close, close, err_msg=name)


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neurons_of_states(schedule, loss):
    problem, weights = several(loss)
    given: Any = (problem, weights, SCHEDULES[schedule])
    end = [SCHEDULES[schedule].duration]
    run = euler_maruyama(
        *given, dt=0.01, paths=3, rng=2, reduce="none", times=[0.0, *end], observables=[*SHARES, *ROWS]
    )
    assert (
        run.own_class.values.tolist()
        == np.array(sorted(NAMES))[OwnClasses(problem, weights.W).numbers].tolist()
    )
    W, V, _ = end_states(*given, dt=0.01, paths=3, rng=2, reduce="none")
    for path in range(3):
        found = expected(problem, weights.W, W[path], V[path])
        assert_seen(run.isel(path=path, time=1), found)
        assert_seen(run.isel(path=path, time=0), expected(problem, weights.W, weights.W, weights.v))
        # all of them are at work
        assert 0 < found["wholly_misaligned"] < found["misaligned"] < 1
        assert found["dead"] > 0
        assert (found["distorted"] > 0) == ("fft" in schedule)
    # negative controls: of the state before, and of other own classes
    before = expected(problem, weights.W, weights.W, weights.v)
    assert abs(run.cone_distance[:, 1] - before["cone_distance"]).max() > 0.05
    other = expected(problem, -weights.W, W[0], V[0])
    assert abs(run.preactivation[0, 1] - other["preactivation"]).max() > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_neurons_of_one_output(schedule, activation):
    """Also in the loop of full batches, so that both have the same observables."""
    y = np.where(np.arange(17) % 3 > 0, 1.0, -1.0)
    problem, weights = Problem(X, y, activation, "logistic"), Weights(WEIGHTS.W, WEIGHTS.v[:, 0])
    given: Any = (problem, weights, SCHEDULES[schedule])
    names = ["misaligned", "distorted", "dead", *ROWS, "head_alignment"]
    times = [SCHEDULES[schedule].duration]
    run = euler_maruyama(*given, dt=0.01, rng=2, reduce="none", times=times, observables=names)
    W, v, _ = end_states(*given, dt=0.01, paths=1, rng=2, reduce="none")
    assert_seen(run.isel(path=0, time=0), expected(problem, weights.W, W[0], v[0]))
    assert run.own_class.values.tolist() == OwnClasses(problem, weights.W).labels.tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("reduce", ["none", "span"])
def test_both_loops_observe_the_same_of_one_output(reduce, activation, dtype):
    """The same Brownian paths through the loop of one output and through that of several."""
    points = np.hstack([X[:5], np.zeros((5, 3))])
    problem = Problem(points, [1.0, -1, 1, -1, 1], activation)
    rng = np.random.default_rng(0)
    weights = Weights(0.5 * rng.standard_normal((23, 9)), WEIGHTS.v[:, 0])
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.3, clip=1.0)
    request = Request(problem, weights, schedule, grid(schedule, 0.01, [0.0, 0.1, 0.25, 0.3]), ["alignment"])
    reduced = reduction(reduce, request)
    found = []
    for loop in (reduced.loop, advance_outputs):
        chain = Chain.build(request, replace(reduced, loop=loop), dtype, noise.key(3))
        found.append(chain.observer.empty(1, per_neuron=True))
        with one_blas_thread():
            for _ in follow(chain, found[-1]):
                pass
    one, other = found
    tolerance = 1e-10 if dtype is np.float64 else 1e-3
    shared = one.scalars.shape[1]
    assert (other.scalars.shape[1], np.isfinite(one.neurons).all()) == (shared + 1, True)
    np.testing.assert_allclose(other.scalars[:, :shared], one.scalars, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(other.neurons, one.neurons, rtol=tolerance, atol=tolerance)
    # a neuron of one output is wholly misaligned if it is at all
    np.testing.assert_array_equal(other.scalars[:, shared], other.scalars[:, 4])
    assert one.scalars[0, 4:6].max(axis=1).min() > 0


@pytest.mark.parametrize("clip", [None, 0.5])
def test_linear_probing_distorts_nothing_to_the_last_bit(clip):
    problem, weights = several()
    schedule = Schedule.lp(time=0.3, sigma=0.5, clip=clip, sample_rate=0.4)
    for precision in ("double", "single"):
        run = euler_maruyama(
            problem, weights, schedule, dt=0.01, paths=5, rng=0, reduce="span", precision=precision
        )
        assert (run.distorted == 0).all()
        assert len(np.unique(run.misaligned)) > 1


def test_runs_in_single_precision():
    problem, weights = several()
    # noise is drawn in the precision of the state
    given: Any = (problem, weights, Schedule.lp_fft(lp_time=0.1, fft_time=0.2, clip=1.0, sample_rate=0.3))
    kinds: Any = dict(dt=0.01, paths=3, rng=2, reduce="none", observables=[*SHARES, *ROWS], times=[0.0, 0.3])
    double, single = (euler_maruyama(*given, precision=p, **kinds) for p in ("double", "single"))
    for name in ROWS:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-4, atol=1e-4, err_msg=name)
        assert (single[name] != double[name]).any()
    for name in ("misaligned", "dead"):
        np.testing.assert_array_equal(single[name], double[name])


@pytest.mark.parametrize("reduce", ["none", "span"])
def test_what_lies_outside_the_span_counts_in_the_cosine(reduce):
    rng = np.random.default_rng(5)
    points, y = rng.standard_normal((5, 9)), [0, 1, 2, 0, 1]
    problem = Problem(points, y, "relu", "softmax")
    weights = Weights(rng.standard_normal((7, 9)), rng.standard_normal((7, 3)))
    schedule = Schedule.fft(time=0.2, clip=1.0)
    run = zeroth_order(
        problem, weights, schedule, dt=0.01, reduce=reduce, observables=[*SHARES, *ROWS], times=[0.2]
    )
    end = gradient_flow(problem, weights, schedule, dt=0.01)
    assert_seen(run.isel(time=0), expected(problem, weights.W, end.W, end.v))


@pytest.mark.parametrize("reduce", ["none", "span"])
def test_moves_outside_the_span_have_their_law(reduce):
    """The mean square of the cosine's denominator, told by one neuron that starts at 0 in all directions."""
    d, sigma, time = 40, 0.5, 0.3
    problem = Problem(np.eye(3, d), [0, 1, 2], "linear", "softmax")
    weights = Weights(np.zeros((1, d)), np.zeros((1, 3)))
    schedule = Schedule.fft(time=time, sigma=sigma, sample_rate=0.5, clip=1e-9)
    run = euler_maruyama(
        problem,
        weights,
        schedule,
        dt=0.1,
        paths=4000,
        rng=0,
        times=[time],
        reduce=reduce,
        observables=["alignment", "preactivation"],
    )
    # ||w||^2 = (z / cosine)^2, where ||mean|| = 1
    squared = (run.preactivation / run.alignment).values[:, 0, 0] ** 2
    error = squared.std(ddof=1) / 4000**0.5
    assert abs(squared.mean() - 2 * sigma**2 * time * d) < 4 * error
    assert abs(squared.mean() - 2 * sigma**2 * time * (d - 1)) > 4 * error


@pytest.mark.parametrize("activation", ["tanh", "linear"])
def test_the_adaptive_flow_observes_its_states(activation):
    problem, weights = several(activation=activation)
    names = [*SHARES, *ROWS, "class_accuracy", "test_class_accuracy", "confusion"]
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, clip=1.0)
    flow = zeroth_order(problem, weights, schedule, times=[0.0, 0.3], observables=names, reduce="none")
    end = gradient_flow(problem, weights, schedule, dt=1e-5)
    assert_seen(flow.isel(time=1), expected(problem, weights.W, end.W, end.v), rtol=1e-4)
    assert_seen(flow.isel(time=0), expected(problem, weights.W, weights.W, weights.v))
    right = problem.outputs(end).argmax(axis=1) == problem.y
    assert flow.class_accuracy[1].values.tolist() == [right[problem.y == c].mean() for c in range(4)]
    assert np.diag(flow.confusion).tolist() == [right[problem.y == c].sum() for c in range(4)]


# --- classes ---------------------------------------------------------------------------------------


CLASSES = [
    "accuracy",
    "test_accuracy",
    "class_accuracy",
    "test_class_accuracy",
    "confusion",
    "test_confusion",
]


def assert_counts_fit(run: xr.Dataset, y: Any, y_test: Any, names: list[str]) -> None:
    """Accuracies, by class and of all, are those of the confusions at the end."""
    for prefix, labels in (("", y), ("test_", y_test)):
        counts = run[f"{prefix}confusion"].values
        samples = [np.sum(np.asarray(labels) == name) for name in names]
        assert (counts.sum(axis=2) == samples).all()
        right = np.einsum("pcc->pc", counts)
        np.testing.assert_allclose(right.sum(axis=1) / sum(samples), run[f"{prefix}accuracy"][:, -1])
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(right / samples, run[f"{prefix}class_accuracy"][:, -1])
        assert list(run["class"].values) == list(run["predicted"].values)


def test_accuracies_and_confusion_by_class():
    """Of the held-out samples none is a gnu."""
    problem, weights = several()
    run = euler_maruyama(
        problem, weights, SCHEDULES["lp-fft batches"], dt=0.01, paths=5, rng=0, observables=CLASSES
    )
    names = list(run["class"].values)
    assert names == ["ape", "cow", "elk", "gnu"]
    assert_counts_fit(run, Y, Y_TEST, names)
    assert np.isnan(run.test_class_accuracy.sel({"class": "elk"})).sum() == 0
    assert np.isnan(run.test_class_accuracy.sel({"class": "gnu"})).all()
    # negative control: rows of the confusion are the classes, and columns what is predicted
    with pytest.raises(AssertionError):
        assert_counts_fit(
            run.assign(confusion=run.confusion.transpose("path", "predicted", "class")), Y, Y_TEST, names
        )


@pytest.mark.parametrize("sample_rate", [0.3, 1.0])
def test_labels_are_two_classes(sample_rate):
    y, y_test = np.where(np.arange(17) % 3 > 0, 1, -1), [1, -1, 1, 1, -1, 1, 1, 1, 1]
    problem = Problem(X, y, "relu", "logistic", TEST, y_test)
    schedule = Schedule.fft(time=0.2, sigma=0.3, sample_rate=sample_rate)
    run = euler_maruyama(
        problem, Weights(WEIGHTS.W, WEIGHTS.v[:, 0]), schedule, dt=0.01, paths=5, rng=0, observables=CLASSES
    )
    assert list(run["class"].values) == ["-1", "+1"]
    assert_counts_fit(run, [f"{label:+d}" for label in y], [f"{label:+d}" for label in y_test], ["-1", "+1"])


def test_an_output_of_zero_is_right_for_no_class():
    problem, weights = Problem(X, np.where(np.arange(17) % 3 > 0, 1, -1)), Weights(WEIGHTS.W, np.zeros(23))
    start = zeroth_order(
        problem,
        weights,
        Schedule.lp(time=0.1),
        dt=0.1,
        times=[0.0],
        observables=["class_accuracy", "confusion"],
    )
    assert start.accuracy[0] == 0
    assert start.class_accuracy[0].values.tolist() == [0, 0]
    assert np.diag(start.confusion).tolist() == [0, 0]


def test_the_confusion_is_that_of_the_last_record():
    problem, weights = several()
    given: Any = (problem, weights, Schedule.fft(time=0.4, sigma=1.0))
    kinds: Any = dict(dt=0.01, paths=4, rng=0, observables=["confusion"], reduce="none")
    early, late = (euler_maruyama(*given, times=[0.0, t], **kinds) for t in (0.2, 0.4))
    half = euler_maruyama(problem, weights, Schedule.fft(time=0.2, sigma=1.0), times=[0.0, 0.2], **kinds)
    np.testing.assert_array_equal(early.confusion, half.confusion)
    assert (late.confusion != early.confusion).any()


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_files_keep_the_names_of_classes(suffix, tmp_path):
    names = ["élan", "", "a\\b c", "-1"]
    problem = Problem(X, np.array(names)[np.arange(17) % 4], "relu", "softmax")
    run = euler_maruyama(
        problem,
        WEIGHTS,
        SCHEDULES["fft"],
        dt=0.05,
        paths=2,
        rng=0,
        observables=["class_accuracy", "confusion", "cone_distance"],
    )
    again = files.load(files.save(run, tmp_path / f"run.{suffix}"))
    assert again.identical(run)
    assert sorted(names) == again["class"].values.tolist() == again.predicted.values.tolist()
    assert set(again.own_class.values) <= set(names)


def test_nothing_is_seen_of_a_path_that_has_diverged():
    problem = Problem(np.ones((3, 1)), [0, 1, 1], "linear", "softmax", np.ones((2, 1)), [0, 1])
    names = [name for name, about in OBSERVABLES.items() if not about.missing(problem)]
    with pytest.raises(Diverged) as caught:
        euler_maruyama(
            problem,
            Weights([[1.0], [0.5]], [[1.0, 0.0], [0.0, 0.3]]),
            # the squares of outputs leave the range of doubles, some paths' earlier than others'
            Schedule.fft(time=5.0, sigma=3e76),
            dt=0.5,
            paths=60,
            rng=0,
            observables=names,
        )
    run = caught.value.run
    lost = np.isnan(run.loss.values)
    assert 0 < lost[:, -1].sum() < 60
    for name in run.data_vars:
        missing = np.isnan(run[name].values)
        by_path = lost if OBSERVABLES[str(name)].over_time else lost[:, -1]
        assert (missing.reshape(*by_path.shape, -1).any(axis=-1) == by_path).all(), name
