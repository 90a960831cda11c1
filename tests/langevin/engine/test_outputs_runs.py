"""Runs with K outputs and Poisson batches: bits, records, observables, limits, and their noise-free paths."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import expm
from sklearn.neighbors import KNeighborsClassifier

from langevin import (
    Diverged,
    Interrupted,
    Phase,
    Problem,
    Schedule,
    Weights,
    euler_maruyama,
    gradient_flow,
    zeroth_order,
)
from langevin.engine import chain, pool
from langevin.solvers.adaptive import stability_limit

RNG = np.random.default_rng(7)
X, CLASSES = RNG.standard_normal((11, 14)), np.array(["elk", "cow", "ape"])[np.arange(11) % 3]
HELD_OUT: dict[str, Any] = dict(X_test=RNG.standard_normal((9, 14)), y_test=["cow"] * 5 + ["elk"] * 4)
PROBLEM = Problem(X, CLASSES, "relu", "softmax", **HELD_OUT)
SMOOTH = Problem(X, CLASSES, "tanh", "softmax")
WEIGHTS = Weights(0.3 * RNG.standard_normal((13, 14)), 0.4 * RNG.standard_normal((13, 3)))
BATCHES = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, sigma=0.3, clip=1.0, sample_rate=0.3)
TARGETS = 0.5 * RNG.standard_normal((11, 3))
WATCHED = [
    "test_accuracy",
    "knn_accuracy",
    "class_accuracy",
    "test_class_accuracy",
    "confusion",
    "test_confusion",
]
WAIT = pool.wait


def run(problem: Problem = PROBLEM, schedule: Schedule = BATCHES, **kinds: Any) -> xr.Dataset:
    arguments = {"dt": 0.01, "paths": 7, "rng": 1, "times": [0.0, 0.05, 0.25, 0.4], **kinds}
    return euler_maruyama(problem, WEIGHTS, schedule, **arguments)


def equal_bits(a: xr.Dataset, b: xr.Dataset) -> bool:
    assert set(a) == set(b)
    return all(a[name].values.tobytes() == b[name].values.tobytes() for name in a.data_vars)


# --- bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["span", "none"])
def test_threads_chunks_and_the_number_of_paths_do_not_change_a_bit(reduce, monkeypatch):
    given: dict[str, Any] = dict(reduce=reduce, observables=[*WATCHED, "cone_distance", "wholly_misaligned"])
    whole = run(threads=1, **given)
    assert equal_bits(whole, run(threads=2, **given))
    assert equal_bits(whole.isel(path=slice(3)), run(paths=3, **given))
    for seconds in (1e-9, 1e-5, 10.0):
        monkeypatch.setattr(chain, "_CALL_SECONDS", seconds)
        assert equal_bits(whole, run(threads=2, **given))
    # negative control
    assert not equal_bits(whole, run(threads=1, rng=2, **given))


@pytest.mark.parametrize("reduce", ["span", "none", "kernel"])
def test_paths_that_read_features_together_keep_their_bits(reduce, monkeypatch):
    schedule = Schedule.lp(time=0.4, sigma=0.3, clip=1.0)

    def probed(**kinds: Any) -> xr.Dataset:
        return run(schedule=schedule, reduce=reduce, **kinds)

    whole = probed(threads=1, paths=70)
    assert equal_bits(whole.isel(path=slice(1)), probed(paths=1))
    assert equal_bits(whole.isel(path=slice(23)), probed(paths=23))
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    assert equal_bits(whole, probed(threads=2, paths=70))
    assert not equal_bits(whole, probed(threads=1, paths=70, rng=2))


def test_a_path_that_diverges_leaves_those_beside_it_alone():
    # unclipped steps beyond the stability limit: some paths leave the range of numbers before others
    problem = Problem(X, TARGETS, "relu", "square")
    schedule = Schedule.lp(time=60.0, sigma=0.3)
    given: dict[str, Any] = dict(
        problem=problem, schedule=schedule, dt=0.5, reduce="none", precision="single"
    )
    times = [0.0, 15.0, 30.0, 45.0, 60.0]
    with pytest.raises(Diverged) as caught:
        run(paths=8, times=times, **given)
    whole = caught.value.run
    for path in (0, 7):
        with pytest.raises(Diverged) as caught:
            run(paths=path + 1, times=times, **given)
        assert equal_bits(whole.isel(path=[path]), caught.value.run.isel(path=[path]))


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("reduce", ["span", "none"])
def test_features_are_those_of_the_path_once_its_layer_has_moved(reduce, rate, monkeypatch):
    given: dict[str, Any] = dict(sigma=0.3, clip=1.0, sample_rate=rate)
    methods: list[tuple[Any, float]] = [("lp", 0.1), ("fft", 0.2), ("lp", 0.1)]
    schedule = Schedule([Phase(method, time, **given) for method, time in methods])
    whole = run(schedule=schedule, reduce=reduce)
    with monkeypatch.context() as patched:
        patched.setattr(chain, "_CALL_SECONDS", 1e-9)
        assert equal_bits(whole, run(schedule=schedule, reduce=reduce, threads=2))
    built = chain.Chain.build

    def own(*args: Any) -> Any:
        return replace(built(*args), probed=None)

    # features that each path computes at each call, rounded in another way
    with monkeypatch.context() as patched:
        patched.setattr(chain.Chain, "build", own)
        assert abs(whole - run(schedule=schedule, reduce=reduce)).loss.max() < 1e-10
    # control: features of the start throughout
    with monkeypatch.context() as patched:
        patched.setattr(chain, "_leading", len)
        assert abs(whole - run(schedule=schedule, reduce=reduce)).loss.max() > 1e-3


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(after, tmp_path, monkeypatch):
    given: dict[str, Any] = dict(observables=[*WATCHED, "cone_distance"])
    whole, left = run(**given), [after]

    def stop(*args: Any, **kinds: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return WAIT(*args, **kinds)

    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    monkeypatch.setattr(pool, "wait", stop)
    with pytest.raises(Interrupted) as caught:
        run(checkpoint=tmp_path / "c", threads=1, **given)
    assert not np.isfinite(caught.value.run.loss.values).all()
    monkeypatch.setattr(pool, "wait", WAIT)
    monkeypatch.setattr(chain, "_CALL_SECONDS", 0.1)
    assert equal_bits(whole, run(checkpoint=tmp_path / "c", threads=2, **given))


def test_runs_with_other_steps_share_their_brownian_paths():
    schedule = Schedule.lp(time=0.4, sigma=0.3)
    fine, coarse = (
        run(schedule=schedule, dt=dt, noise_dt=0.0025, reduce="none").squared_distance
        for dt in (0.0025, 0.01)
    )
    other = run(schedule=schedule, dt=0.01, noise_dt=0.0025, rng=2, reduce="none").squared_distance
    assert abs(fine / coarse - 1)[:, 1:].max() < 0.1 < abs(fine / other - 1)[:, 1:].max()


# --- noise-free paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["span", "none"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_runs_without_noise_are_the_zeroth_order_path_to_the_last_bit(reduce, clip):
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, clip=clip)
    still, path = (
        run(schedule=schedule, paths=1, reduce=reduce).isel(path=0),
        zeroth_order(PROBLEM, WEIGHTS, schedule, dt=0.01, times=[0.0, 0.05, 0.25, 0.4], reduce=reduce),
    )
    assert (still.squared_distance == 0).all()
    assert equal_bits(still.drop_vars("squared_distance"), path)


def test_the_zeroth_order_path_leaves_batches_out():
    full = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, sigma=0.3, clip=1.0)
    path, whole = (zeroth_order(PROBLEM, WEIGHTS, one, dt=0.01) for one in (BATCHES, full))
    assert equal_bits(path, whole)
    # the distances of a run are from that path
    silent = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, clip=1.0, sample_rate=0.3)
    assert (run(schedule=silent).squared_distance[:, 1:] > 0).all()


@pytest.mark.parametrize("method", ["lp", "fft", "lp-fft"])
@pytest.mark.parametrize("loss", ["softmax", "ovr", "square"])
def test_the_adaptive_path_is_the_limit_of_short_steps(method, loss):
    problem = Problem(X, TARGETS if loss == "square" else CLASSES, "tanh", loss)
    share = {"lp": 0.4, "fft": 0.0, "lp-fft": 0.2}[method]
    schedule, times = Schedule.lp_fft(lp_time=share, fft_time=0.4 - share), [0.1, 0.2, 0.3, 0.4]
    exact = zeroth_order(problem, WEIGHTS, schedule, times=times).loss
    paths = (zeroth_order(problem, WEIGHTS, schedule, dt=dt, times=times) for dt in (2e-3, 1e-3, 5e-4))
    errors = np.array([abs(path.loss - exact).max() for path in paths])
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.05)


@pytest.mark.parametrize("clip", [0.3, 1.0])
def test_the_adaptive_path_of_clipped_nets(clip):
    schedule = Schedule.lp_fft(lp_time=0.2, fft_time=0.2, clip=clip)
    exact = zeroth_order(SMOOTH, WEIGHTS, schedule, times=[0.4]).loss
    close, rough = (zeroth_order(SMOOTH, WEIGHTS, schedule, dt=dt, times=[0.4]).loss for dt in (1e-4, 1e-3))
    assert abs(close - exact).max() < 0.15 * abs(rough - exact).max()
    assert abs(close / exact - 1).max() < 1e-4


@pytest.mark.parametrize("reduce", ["kernel", "span"])
def test_the_adaptive_path_of_linear_probing_in_closed_form(reduce):
    problem = Problem(X, TARGETS, "relu", "square")
    path = zeroth_order(problem, WEIGHTS, Schedule.lp(time=0.4), reduce=reduce)
    A = problem.features(WEIGHTS.W)
    R = [expm(-t * A @ A.T) @ (A @ WEIGHTS.v - problem.y) for t in path.time.values]
    np.testing.assert_allclose(path.loss, [(r**2).sum() / 2 for r in R], rtol=1e-7)


# --- observables and records -----------------------------------------------------------------------


def by_class(prefix: str, classes: Any, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy of each class, and their confusion, counted one by one."""
    counts = np.array([[sum((classes == c) & (predicted == p)) for p in range(3)] for c in range(3)])
    samples = [np.sum(classes == c) for c in range(3)]
    shares = [counts[c, c] / samples[c] if samples[c] else np.nan for c in range(3)]
    return {f"{prefix}class_accuracy": shares, f"{prefix}confusion": counts}


@pytest.mark.parametrize(("reduce", "method"), [("none", "fft"), ("span", "fft"), ("kernel", "lp")])
def test_observables_against_their_definitions(reduce, method):
    schedule = Schedule.lp(time=0.2) if method == "lp" else Schedule.fft(time=0.2)
    path = zeroth_order(
        PROBLEM, WEIGHTS, schedule, dt=0.01, times=[0.2], observables=WATCHED, reduce=reduce
    ).isel(time=0)
    end = gradient_flow(PROBLEM, WEIGHTS, schedule, dt=0.01)
    f, X_test, y_test = PROBLEM.outputs(end), PROBLEM.X_test, PROBLEM.y_test
    assert X_test is not None
    held_out = PROBLEM.activate(X_test @ end.W.T)
    nearest = KNeighborsClassifier(11).fit(PROBLEM.features(end.W), PROBLEM.y)
    moved = np.sum((end.W - WEIGHTS.W) ** 2) + np.sum((end.v - WEIGHTS.v) ** 2)
    expected = {
        "loss": PROBLEM.losses(f).sum(),
        "accuracy": (f.argmax(axis=1) == PROBLEM.y).mean(),
        "displacement": moved**0.5,
        "test_accuracy": ((held_out @ end.v).argmax(axis=1) == y_test).mean(),
        "knn_accuracy": nearest.score(held_out, y_test),
        **by_class("", PROBLEM.y, f.argmax(axis=1)),
        **by_class("test_", y_test, (held_out @ end.v).argmax(axis=1)),
    }
    shares = {"misaligned", "distorted", "dead"} if reduce != "kernel" else set()
    assert set(path) == set(expected) | shares
    for name, value in expected.items():
        np.testing.assert_allclose(path[name], value, rtol=1e-10, err_msg=name)


def test_records_name_classes_and_sample_rates_where_there_are_any():
    attributes = run().attrs
    assert json.loads(attributes["classes"]) == ["ape", "cow", "elk"]
    config = json.loads(attributes["config"])
    assert config["problem"]["classes"] == ["ape", "cow", "elk"]
    assert [phase["sample_rate"] for phase in config["schedule"]] == [0.3, 0.3]


def test_records_of_scalar_runs_are_those_of_earlier_versions():
    """So that their checkpoints go on."""
    problem, schedule = Problem(X, np.where(np.arange(11) % 2, 1, -1)), Schedule.fft(time=0.1, sigma=0.1)
    found = euler_maruyama(problem, Weights(WEIGHTS.W, WEIGHTS.v[:, 0]), schedule, dt=0.01, rng=0).attrs
    config = json.loads(found["config"])
    assert set(config["problem"]) == {"samples", "dim", "activation", "loss", "digest"}
    about = {"time": 0.1, "sigma": 0.1, "clip": None, "clipping": "flat", "stabiliser": 0.01}
    assert config["schedule"] == [{"method": "fft", **about}]
    assert set(found) == {"title", "source", "config", "versions"}


# --- limits ----------------------------------------------------------------------------------------


def test_memory_is_refused_beforehand():
    with pytest.raises(MemoryError, match="take fewer paths"):
        run(paths=10**10)


def test_divergence_names_a_step_that_is_stable():
    problem = Problem(X, TARGETS, "relu", "square")
    A = problem.features(WEIGHTS.W)
    limit = stability_limit(problem, WEIGHTS, Schedule.lp(time=1.0))
    np.testing.assert_allclose(limit, 2 / np.linalg.norm(A @ A.T, 2), rtol=0.01)
    with pytest.raises(Diverged, match="unclipped steps become unstable"):
        run(problem, Schedule.lp(time=4000 * limit), dt=2 * limit, times=None)


def test_the_limit_of_full_fine_tuning_is_that_of_the_tangent_kernel():
    z = X @ WEIGHTS.W.T
    gradients = np.zeros((11, 3, 13 * 14 + 13 * 3))
    for i in range(11):
        for k in range(3):
            layer = np.outer(WEIGHTS.v[:, k] * (1 - np.tanh(z[i]) ** 2), X[i])
            head = np.zeros((13, 3))
            head[:, k] = np.tanh(z[i])
            gradients[i, k] = np.concatenate([layer.ravel(), head.ravel()])
    largest = np.linalg.norm(gradients.reshape(33, -1), 2) ** 2
    limit = stability_limit(SMOOTH, WEIGHTS, Schedule.fft(time=1.0))
    np.testing.assert_allclose(limit, 2 / (0.5 * largest), rtol=0.02)
