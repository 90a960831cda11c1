"""Section 7: a reduction has the law of its chain, and a law that is a tenth off is detected."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.spatial.distance import cdist

from langevin import (
    GramWeights,
    Phase,
    Problem,
    Schedule,
    Weights,
    euler_maruyama,
    gaussian_features,
    gaussian_gram,
    gaussian_head,
)
from langevin.engine.reductions import choose
from langevin.engine.reductions.request import Reduction, Request
from langevin.solvers import prepare
from tests.helpers import end_states, random_problem, random_weights

PATHS, SUBSAMPLE, PERMUTATIONS = 10_000, 1000, 1999
DT, TIMES = 0.02, [0.2, 0.4]
METHODS = {"lp": ["lp", "lp"], "fft": ["fft", "fft"], "lp-fft": ["lp", "fft"]}
LEVEL = 1e-3


@dataclass(frozen=True)
class Case:
    """A chain and the reduction that replaces it."""

    reduce: str
    method: str
    activation: str = "linear"
    loss: str = "logistic"
    clip: float | None = None
    width: int = 40
    clipping: str = "flat"

    @property
    def problem(self) -> Problem:
        kinds: dict[str, Any] = dict(activation=self.activation, loss=self.loss)
        if self.reduce == "collapsed":
            y = np.where(np.arange(6) % 3, 1.0, -1.0)
            return Problem(y[:, None] * np.array([0.6, -0.2, 0.5]), y, **kinds)
        # more dimensions than samples: part of the weights lies outside the span
        return random_problem(3, n=4, d=6, **kinds)

    @property
    def weights(self) -> Weights:
        return random_weights(3, h=self.width, d=self.problem.dim, scale=0.3)

    def run(self, reduce: str, rng: int, noise: float = 1.0, paths: int = PATHS) -> xr.Dataset:
        # the effect of noise on the loss must be visible, but unclipped paths with a square loss may diverge
        sigma = noise * (0.2 if self.clip is None and self.loss == "square" else 0.5)
        phases = [
            Phase(method, 0.2, sigma, self.clip, self.clipping)  # pyright: ignore[reportArgumentType]
            for method in METHODS[self.method]
        ]
        return euler_maruyama(
            self.problem,
            self.weights,
            Schedule(phases),
            dt=DT,
            paths=paths,
            rng=rng,
            times=TIMES,
            reduce=reduce,
        )


# each kind of chain by one or two cases; the others repeat the code with other values
def most_slow(cases: list[Case], quick: set[int]) -> list[Any]:
    """Mark all cases but the quick ones, given by their places, as slow."""
    return [pytest.param(case, marks=() if k in quick else pytest.mark.slow) for k, case in enumerate(cases)]


LINEAR = [
    Case("gram", method, loss=loss, clip=clip)
    for method in ("fft", "lp-fft", "lp")
    for loss in ("logistic", "square")
    for clip in (None, 0.5)
]
KERNEL = [
    Case("kernel", "lp", activation, loss, clip)
    for activation in ("relu", "linear")
    for loss in ("logistic", "square")
    for clip in (None, 0.5)
]
COLLAPSED = [
    Case("collapsed", "fft", loss=loss, clip=clip, width=width)
    for loss in ("logistic", "square")
    for clip in (None, 0.5)
    for width in (2, 3, 40)
]
# the span has 4 dimensions, q is 5: no fold, then one degree of freedom after the other
NARROW = [Case("gram", "lp-fft", clip=0.5, width=width) for width in (3, 5, 11, 12, 13, 16, 17)]
CALLED = [
    Case("kernel", "lp", "gelu", "huber", 0.5),
    Case("gram", "lp-fft", loss="huber", clip=0.5),
    Case("collapsed", "fft", loss="huber", clip=0.5),
]
NORMALISED = Case("gram", "lp-fft", clip=0.5, clipping="normalised")
CASES = [
    # full fine-tuning with either loss; after probing, clipped; probing alone
    *most_slow(LINEAR, {0, 3, 5, 10}),
    *most_slow(KERNEL, {0, 3, 5}),
    # each width, loss and threshold
    *most_slow(COLLAPSED, {0, 4, 8, 11}),
    # no fold, the first degree of freedom, more than one
    *most_slow(NARROW, {0, 3, 4}),
    *most_slow(CALLED, {0, 2}),
    NORMALISED,
]


@functools.lru_cache(maxsize=16)
def full_run(case: Case) -> xr.Dataset:
    """Return the run that several reductions are compared with."""
    return case.run("none", 1)


def losses(run: xr.Dataset) -> list[np.ndarray]:
    values = run.loss.values
    return [values[:, 0], values[:, 1], values[:, 1] - values[:, 0]]


def ks(a: xr.Dataset, b: xr.Dataset) -> float:
    """Bonferroni-corrected Kolmogorov-Smirnov p-value on the losses and their change."""
    tests: list[Any] = [stats.ks_2samp(x, y) for x, y in zip(losses(a), losses(b), strict=True)]
    return min(1.0, len(tests) * min(test.pvalue for test in tests))


@functools.cache
def permuted_signs() -> np.ndarray:
    """Return which sample each row of the pooled ones belongs to: as it is, then permuted."""
    rng = np.random.default_rng(0)
    signs = np.ones((PERMUTATIONS + 1, 2 * SUBSAMPLE), np.float32)
    signs[:, SUBSAMPLE:] = -1
    rng.permuted(signs[1:], axis=1, out=signs[1:])
    return np.ascontiguousarray(signs.T)


def energy(a: xr.Dataset, b: xr.Dataset) -> float:
    """p-value of the energy distance of all observables at both times jointly, by permutation."""
    names = ("loss", "displacement", "squared_distance")
    first, second = (np.hstack([run[name].values[:SUBSAMPLE] for name in names]) for run in (a, b))
    pooled = np.vstack([first, second])
    pooled = (pooled - np.median(pooled, axis=0)) / stats.iqr(pooled, axis=0)
    distances = cdist(pooled, pooled)
    signs = permuted_signs()
    # up to a factor, the energy distance; the sums of 2000 distances need no more than single precision
    statistics = -np.einsum("ij,ij->j", signs, distances.astype(np.float32) @ signs, dtype=float)
    return float((statistics >= statistics[0]).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_laws_agree(case):
    full, short = full_run(case), case.run(case.reduce, 2)
    assert ks(full, short) > LEVEL
    assert energy(full, short) > LEVEL


@pytest.mark.parametrize(
    "case", most_slow([LINEAR[0], KERNEL[0], COLLAPSED[2], LINEAR[3], LINEAR[5]], {0, 1, 2}), ids=str
)
def test_stronger_noise_is_detected(case):
    full, louder = full_run(case), case.run(case.reduce, 2, noise=1.1)
    assert ks(full, louder) < LEVEL
    assert energy(full, louder) < LEVEL


def with_more(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Simulate with a tenth too much of what is folded or hidden."""

    def wrong(name: str, request: Request) -> Reduction:
        right = choose.reduction(name, request)
        if field == "folded":
            return replace(right, folded=round(1.1 * right.folded))
        return replace(right, hidden=tuple(h._replace(dims=round(1.1 * h.dims)) for h in right.hidden))

    monkeypatch.setattr(prepare, "reduction", wrong)


@pytest.mark.parametrize("case", most_slow([LINEAR[0], COLLAPSED[2], LINEAR[3], LINEAR[5]], {0, 1}), ids=str)
def test_more_degrees_of_freedom_are_detected(case, monkeypatch):
    full = full_run(case)
    with_more(monkeypatch, "folded")
    assert energy(full, case.run(case.reduce, 2)) < LEVEL


@pytest.mark.slow
def test_more_degrees_of_freedom_affect_the_loss(monkeypatch):
    case, paths = LINEAR[0], 60_000
    full = case.run("none", 1, paths=paths)
    assert ks(full, case.run("gram", 2, paths=paths)) > LEVEL
    with_more(monkeypatch, "folded")
    assert ks(full, case.run("gram", 2, paths=paths)) < LEVEL


@pytest.mark.parametrize("case", [KERNEL[0], LINEAR[0]], ids=str)
def test_more_hidden_dimensions_are_detected(case, monkeypatch):
    """They affect only distances."""
    full = full_run(case)
    with_more(monkeypatch, "hidden")
    assert energy(full, case.run(case.reduce, 2)) < LEVEL


# --- the Gram matrix itself ------------------------------------------------------------------


def gram_matrices(weights: Weights, paths: int = 20_000, steps: int = 10) -> np.ndarray:
    """``M`` at the end of a chain without drift, shape (paths, q, q), total noise 1 per parameter."""
    # inputs so short that their gradient vanishes, in four directions
    problem = Problem(1e-160 * np.eye(4), np.ones(4), "linear", "square")
    schedule = Schedule.fft(time=1.0, sigma=0.5**0.5)
    W, v, _ = end_states(problem, weights, schedule, dt=1.0 / steps, paths=paths, rng=5, reduce="gram")
    Theta = np.concatenate([W, v[:, :, None]], axis=2)
    return Theta.transpose(0, 2, 1) @ Theta


@pytest.mark.parametrize(
    "width", [3, 12, 40, 10**9, *(pytest.param(width, marks=pytest.mark.slow) for width in (5, 11, 16))]
)
def test_moments_of_the_gram_matrix(width):
    """Noncentral Wishart: mean, variances and the fluctuation's independence of width."""
    rng = np.random.default_rng(width)
    rows = min(width, 5)
    # at 10^9 neurons, initial weights that exceed the noise
    size = max(1.0, (width / 40) ** 0.5)
    W, v = size * rng.standard_normal((rows, 4)), size * rng.standard_normal(rows)
    weights = GramWeights(W, v, width)
    start = np.column_stack([W, v])
    M0 = start.T @ start
    M = gram_matrices(weights)
    mean = M0 + width * np.eye(5)
    diagonal = np.diag(M0)
    variance = width * (1 + np.eye(5)) + diagonal[:, None] + diagonal + 2 * np.diag(diagonal)
    found, squares = M.var(axis=0), ((M - M.mean(axis=0)) ** 2).var(axis=0)
    errors = np.sqrt(found / len(M)), np.sqrt(squares / len(M))
    assert np.abs((M.mean(axis=0) - mean) / errors[0]).max() < 4.5
    assert np.abs((found - variance) / errors[1]).max() < 4.5
    # negative controls: a tenth more degrees of freedom, or noise
    assert np.abs((M.mean(axis=0) - M0 - 1.1 * width * np.eye(5)) / errors[0]).max() > 4.5
    assert np.abs((found - 1.21 * variance) / errors[1]).max() > 4.5


@pytest.mark.parametrize("width", [3, 8])
def test_gaussian_weights_by_their_gram_matrix(width):
    problem = Problem(np.eye(4)[:3], np.ones(3), "linear", "square")

    def entries(start: Weights) -> np.ndarray:
        Theta = np.column_stack([start.W[:, :3], start.v])
        return (Theta.T @ Theta)[np.triu_indices(4)]

    def single(h: int, seed: int) -> Weights:
        return Weights(gaussian_features(h, 4, scale=1.0, rng=seed), gaussian_head(h, 0.5, rng=seed))

    seeds = range(1500)
    grams = [gaussian_gram(problem, width, scale=1.0, head_scale=0.5, rng=seed) for seed in seeds]
    assert {gram.width for gram in grams} == {width}
    by_gram = np.array([entries(gram) for gram in grams])

    def pvalue(other: np.ndarray) -> float:
        tests: list[Any] = [stats.ks_2samp(a, b) for a, b in zip(by_gram.T, other.T, strict=True)]
        return len(tests) * min(test.pvalue for test in tests)

    assert pvalue(np.array([entries(single(width, seed)) for seed in seeds])) > LEVEL
    assert pvalue(np.array([entries(single(width + 1, seed)) for seed in seeds])) < LEVEL
