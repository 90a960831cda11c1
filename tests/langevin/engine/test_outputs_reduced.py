"""Sections 7' and 8'e: reductions of runs with K outputs and batches have the law of the full chain."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from langevin import GramWeights, Phase, Problem, Schedule, Weights, euler_maruyama, zeroth_order
from langevin.engine.reductions import choose
from langevin.engine.reductions.request import Reduction, Request
from langevin.model.gauge import gauge_basis
from langevin.solvers import prepare
from tests.helpers import end_states

DT, TIMES, LEVEL = 0.02, [0.2, 0.4], 1e-3
METHODS = {"lp": ["lp", "lp"], "fft": ["fft", "fft"], "lp-fft": ["lp", "fft"], "fft-lp": ["fft", "lp"]}


@dataclass(frozen=True)
class Case:
    """A chain and the reduction that replaces it."""

    reduce: str
    method: str
    loss: str
    clip: float | None = None
    clipping: str = "flat"
    rate: float = 1.0
    outputs: int = 3
    width: int = 10

    @property
    def problem(self) -> Problem:
        # more dimensions than samples: part of the weights lies outside the span
        rng = np.random.default_rng(5)
        classes = self.loss in ("softmax", "ovr")
        y: Any = np.arange(6) % self.outputs if classes else rng.standard_normal((6, self.outputs))
        if self.outputs == 1:
            y = np.where(np.arange(6) % 2, 1.0, -1.0)
        X = (
            rng.standard_normal((6, 8))
            if self.reduce != "gram"
            else rng.standard_normal((6, 4)) @ np.eye(4, 8)
        )
        return Problem(X, y, "linear" if self.reduce == "gram" else "relu", self.loss)

    @property
    def weights(self) -> Weights:
        rng = np.random.default_rng(6)
        head = (self.width,) if self.outputs == 1 else (self.width, self.outputs)
        return Weights(0.3 * rng.standard_normal((self.width, 8)), 0.3 * rng.standard_normal(head))

    def run(self, reduce: str, rng: int, noise: float = 1.0, rate: float | None = None) -> xr.Dataset:
        kinds: dict[str, Any] = dict(clip=self.clip, clipping=self.clipping)
        # so little noise that the sampling shows next to it
        kinds["sigma"] = noise * (0.3 if self.rate == 1 else 0.1)
        kinds["sample_rate"] = self.rate if rate is None else rate
        phases: list[Any] = [Phase(one, 0.2, **kinds) for one in METHODS[self.method]]  # pyright: ignore
        given: dict[str, Any] = dict(dt=DT, times=TIMES, paths=10_000, rng=rng, reduce=reduce)
        return euler_maruyama(self.problem, self.weights, Schedule(phases), **given)


SLOW = pytest.mark.slow
# the span has 4 dimensions; widths of no fold, of the first degree of freedom, of more than one
CASES = [
    Case("span", "fft", "softmax", 0.5),
    Case("span", "lp-fft", "square", 0.5, rate=0.3),
    Case("kernel", "lp", "softmax"),
    Case("kernel", "lp", "softmax", 0.2, "margin", rate=0.3),
    Case("kernel", "lp", "ovr", 0.2, "column", rate=0.3),
    Case("kernel", "lp", "square", 0.5, rate=0.3),
    Case("gram", "lp-fft", "softmax", 0.5, rate=0.3, width=40),
    Case("gram", "fft-lp", "ovr", 0.5, width=18),
    Case("gram", "lp-fft", "logistic", 0.5, rate=0.3, outputs=1, width=40),
    *(
        pytest.param(Case("gram", method, loss, 0.5, rate=rate, outputs=outputs, width=width), marks=SLOW)
        for method, rate in (("fft", 0.3), ("lp-fft", 1.0), ("fft-lp", 0.3), ("lp", 0.3))
        for loss, outputs in (("softmax", 2), ("softmax", 5), ("ovr", 3), ("square", 3))
        for width in (3, 8, 14, 17, 19, 60)
    ),
    *(
        pytest.param(Case("kernel", "lp", loss, 0.2, clipping, rate=1.0), marks=SLOW)
        for loss, clipping in (
            ("softmax", "margin"),
            ("softmax", "flat"),
            ("ovr", "column"),
            ("square", "flat"),
        )
    ),
]


@functools.lru_cache(maxsize=4)
def full_run(case: Case) -> xr.Dataset:
    return case.run("none", 1)


def observed(run: xr.Dataset) -> list[np.ndarray]:
    early, late = run.loss.values.T
    names = ("displacement", "squared_distance")
    return [early, late, late - early, *(run[name].values[:, i] for name in names for i in (0, 1))]


def pvalue(a: xr.Dataset, b: xr.Dataset) -> float:
    """Smallest Kolmogorov-Smirnov p-value, times their number."""
    tests: list[Any] = [stats.ks_2samp(x, y) for x, y in zip(observed(a), observed(b), strict=True)]
    return min(1.0, len(tests) * min(test.pvalue for test in tests))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_laws_agree(case):
    full = full_run(case)
    assert pvalue(full, case.run(case.reduce, 2)) > LEVEL
    assert pvalue(full, case.run(case.reduce, 2, noise=1.1)) < LEVEL
    # without the weights of the batches
    assert case.rate == 1 or pvalue(full, case.run(case.reduce, 2, rate=1.0)) < LEVEL


@pytest.mark.parametrize("field", ["folded", "hidden"])
def test_one_neuron_too_many_is_detected(field, monkeypatch):
    """A tenth more folded neurons, or hidden dimensions, show in the distances."""
    case = CASES[6]
    assert isinstance(case, Case)

    def wrong(name: str, request: Request) -> Reduction:
        right = choose.reduction(name, request)
        if field == "folded":
            return replace(right, folded=round(1.1 * right.folded))
        return replace(right, hidden=tuple(h._replace(dims=round(1.1 * h.dims)) for h in right.hidden))

    monkeypatch.setattr(prepare, "reduction", wrong)
    assert pvalue(full_run(case), case.run(case.reduce, 2)) < LEVEL


# --- the Gram matrix itself -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fft", "lp"])
@pytest.mark.parametrize("width", [3, 17, 10**9])
def test_moments_of_the_gram_matrix(method, width):
    """Noncentral Wishart: mean and variances of ``[W, V]^T [W, V]`` without drift, three outputs."""
    rng = np.random.default_rng(width)
    rows, columns, size = min(width, 6), 6, max(1.0, (width / 40) ** 0.5)
    W, V = size * rng.standard_normal((rows, 3)), size * rng.standard_normal((rows, 3))
    # inputs so short that their gradient vanishes, in three directions
    problem = Problem(1e-160 * np.eye(3), np.eye(3), "linear", "square")
    schedule = Schedule([Phase(method, 1.0, 0.5**0.5)])
    given: dict[str, Any] = dict(dt=0.1, paths=10_000, rng=5, reduce="gram")
    found_W, found_V, _ = end_states(problem, GramWeights(W, V, width), schedule, **given)
    Theta = np.concatenate([found_W, found_V], axis=2)
    M = Theta.transpose(0, 2, 1) @ Theta
    moves = np.diag(np.repeat([method == "fft", True], 3).astype(float))
    start = np.column_stack([W, V])
    M0 = start.T @ start

    def z(width: int, noise: float = 1.0) -> tuple[float, float]:
        a, b = np.diag(M0), noise * np.diag(moves)
        mean = M0 + width * noise * moves
        outer, cross = np.outer(b, b), np.outer(a, b)
        diagonal = np.eye(columns)
        variance = width * outer * (1 + diagonal) + cross + cross.T + diagonal * 2 * np.diag(a * b)
        seen, squares = M.var(axis=0), ((M - M.mean(axis=0)) ** 2).var(axis=0)
        errors = np.sqrt(seen / len(M)) + 1e-9 * (1 + np.abs(M0)), np.sqrt(squares / len(M)) + 1e-9
        return (
            float(np.abs((M.mean(axis=0) - mean) / errors[0]).max()),
            float(np.abs((seen - variance) / errors[1])[moves.sum(0) > 0].max()),
        )

    assert max(z(width)) < 5
    # negative controls: a tenth more degrees of freedom, or noise
    assert z(round(1.1 * width) + (width < 10))[0] > 5
    assert z(width, 1.1)[1] > 5


def test_the_gram_chain_is_the_full_one_without_noise():
    case = replace(CASES[6], rate=1.0)  # pyright: ignore[reportArgumentType]
    phases: list[Any] = [Phase(one, 0.2, clip=0.5) for one in ("lp", "fft")]  # pyright: ignore
    runs = [
        zeroth_order(case.problem, case.weights, Schedule(phases), dt=0.01, times=TIMES, reduce=name)
        for name in ("none", "gram")
    ]
    for name in ("loss", "displacement"):
        np.testing.assert_allclose(runs[0][name], runs[1][name], rtol=1e-11)


@pytest.mark.parametrize("outputs", [2, 3, 10])
def test_gauge_basis(outputs):
    E = gauge_basis(outputs)
    np.testing.assert_allclose(E.T @ E, np.eye(outputs - 1), atol=1e-15)
    np.testing.assert_allclose(E.sum(axis=0), 0, atol=1e-14)
