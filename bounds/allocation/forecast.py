"""The best settings of private linear probing, and what they reach, without a trial (8'c, new)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bounds.allocation.candidates import CRITERIA, LARGEST_SHARE, Candidate, Criterion, Grid, average, best
from bounds.loss.held_out import chances
from bounds.loss.law import exceeds
from bounds.loss.moments import Diagonal, Points, Probing, probing, require_memory
from bounds.privacy.gaussian import validate_delta
from langevin.model.dpsgd import DPSGD
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.targets import read_targets
from langevin.model.weights import Weights
from langevin.support import threads, validate
from langevin.support.validate import FloatArray

SOURCE = "new (8'c), with the Gaussian law of the outputs: an approximation"
SAMPLE_RATES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
STEPS = (4, 8, 16, 32, 64, 128, 256, 512)
MOST_STEPS = 10_000
SMALLEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class ProbingForecast:
    """Settings of private linear probing and what they are expected to reach; see `probing_forecast`.

    Attributes
    ----------
    problem : Problem
        The features as inputs of a linear network, with one-hot targets and the square loss.
    weights : Weights
        Its identity layer and zero head.
    dpsgd : DPSGD
        Learning rate, noise multiplier, clip, steps and sample rate.
    epsilon, delta : float
        What it spends at most.
    train_loss, test_loss : float
        Expected losses at the end: sums over the samples.
    train_accuracy, test_accuracy : float
        Expected accuracies at the end.
    clipped : float
        Expected share of clipped gradients, over all steps.
    valid : bool
        Whether that is at most 1 %, so that the forecast holds.
    reason : str
    source : str
    """

    problem: Problem
    weights: Weights
    dpsgd: DPSGD
    epsilon: float
    delta: float
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    clipped: float
    valid: bool
    reason: str
    source: str = SOURCE

    @property
    def schedule(self) -> Schedule:
        """The phase whose chain in steps of ``dpsgd.dt`` it is."""
        return Schedule([self.dpsgd.phase("lp")])


def probing_forecast(
    A: ArrayLike,
    y: ArrayLike,
    A_test: ArrayLike,
    y_test: ArrayLike,
    epsilon: float,
    delta: float,
    *,
    normalise: bool = True,
    criterion: Criterion = "accuracy",
    sample_rates: ArrayLike | None = None,
    steps: ArrayLike = STEPS,
    clips: ArrayLike | None = None,
) -> ProbingForecast:
    """Forecast the best private linear probing of features, and what it reaches, without a trial.

    New (8'c). DP-SGD on the square loss of one-hot targets from a zero head has second moments in closed form
    as long as nothing is clipped. So every learning rate, number of steps, sample rate and clip is judged by
    its expected accuracy or loss on the held-out points, with the noise that ``epsilon`` takes by
    dp-accounting's PLD accountant, and the smallest clip that clips at most 1 % of the gradients.

    Covers
        Linear probing with the square loss and flat clipping that hardly acts, Poisson or full batches.

    Parameters
    ----------
    A, A_test : array_like, shapes (n, h) and (m, h)
        Features.
    y, y_test : array_like, shapes (n,) and (m,), or (n, K) and (m, K)
        Class numbers from 0 or names, or one-hot rows.
    epsilon, delta : float
        The budget, for neighbours that differ by one sample more or less.
    normalise : bool
        Divide the features of each sample by their norm, so that no gradient is much longer than others: the
        forecast is for these.
    criterion : {"accuracy", "loss"}
        What to optimise on the held-out points.
    sample_rates : array_like, optional
        Poisson rates to choose from; powers of 1/2 down to 1/32 by default, for batches of 16 at least.
    steps : array_like of int
        Numbers of steps to choose from. Of settings that differ by less than a thousandth, the one that reads
        the fewest samples is taken.
    clips : array_like, optional
        Clipping norms to choose from; by default 24 from the median to 4 times the largest norm of a gradient
        at the start.

    Returns
    -------
    ProbingForecast
        ``valid=False`` with the reason if more than 1 % of the gradients are clipped with every setting: the
        numbers are then those of unclipped steps.

    Notes
    -----
    The search takes the covariance of the head to be diagonal in the eigenvectors of ``A^T A``; so do the
    losses that are returned, whose error is of second order in the noise of sampling. `lp_expected_loss` with
    ``dt`` computes them exactly. The forecast reads the data: on private data that is a release which
    ``epsilon`` does not include.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y, y_test = np.arange(600) % 3, np.arange(300) % 3
    >>> A, A_test = (3 * np.eye(3, 5)[c] + rng.standard_normal((len(c), 5)) for c in (y, y_test))
    >>> found = probing_forecast(A, y, A_test, y_test, 1.0, 1e-5, sample_rates=[1.0])
    >>> found.valid, round(found.test_accuracy, 2), found.dpsgd.steps
    (True, 0.98, 4)

    Run exactly that:

    >>> from langevin import euler_maruyama
    >>> run = euler_maruyama(found.problem, found.weights, found.schedule, dt=found.dpsgd.dt, rng=0)
    """
    epsilon, delta = validate.positive("epsilon", epsilon), validate_delta(delta)
    validate.choice("criterion", criterion, CRITERIA)
    problem = _problem(A, y, A_test, y_test, normalise)
    weights = Weights(np.eye(problem.dim), np.zeros((problem.dim, problem.outputs_dim)))
    assert problem.X_test is not None
    assert problem.y_test is not None
    norms = np.linalg.norm(problem.X, axis=1)
    grid = Grid(
        epsilon,
        delta,
        _rates(sample_rates, problem.samples),
        _steps(steps),
        _clips(clips, norms),
        criterion,
    )
    require_memory(problem, weights, len(problem.X_test))
    # many products of small matrices
    with threads.one_blas_thread():
        found = probing(problem.X, problem.targets, weights.v)
        held_out = found.points(problem.X_test, problem.y_test)
        return _forecast(problem, weights, found, held_out, norms, grid)


def _forecast(
    problem: Problem, weights: Weights, found: Probing, held_out: Points, norms: FloatArray, grid: Grid
) -> ProbingForecast:
    """Choose the settings and follow their moments on all samples."""
    chosen = best(found, held_out, norms, grid)
    dpsgd, moments, clipped = _followed(found, norms, chosen, chosen.clip)
    # the ranking looked at some samples: over all of them a larger clip may be needed
    larger = iter(grid.clips[grid.clips > chosen.clip].tolist() if chosen.clipped <= LARGEST_SHARE else ())
    while clipped > LARGEST_SHARE and (clip := next(larger, None)):
        dpsgd, moments, clipped = _followed(found, norms, chosen, clip)
    valid = clipped <= LARGEST_SHARE
    reason = "" if valid else f"{clipped:.1%} of the gradients are clipped, more than {LARGEST_SHARE:.0%}"
    return ProbingForecast(
        problem,
        weights,
        dpsgd,
        grid.epsilon,
        grid.delta,
        train_loss=moments.loss(),
        test_loss=0.5 * float(moments.squared_residuals(held_out).sum()),
        train_accuracy=float(chances(moments, found.samples).mean()),
        test_accuracy=float(chances(moments, held_out).mean()),
        clipped=clipped,
        valid=valid,
        reason=reason,
    )


def _followed(
    found: Probing, norms: FloatArray, chosen: Candidate, clip: float
) -> tuple[DPSGD, Diagonal, float]:
    """Moments at the end of a setting with this clip, and the expected share of clipped gradients."""
    n = len(norms)
    dpsgd = DPSGD(chosen.dt * n, chosen.noise_multiplier, clip, chosen.steps, chosen.sample_rate, n)
    phase, moments = dpsgd.phase("lp"), Diagonal(found)
    knots = np.unique([0, *(2**k for k in range(dpsgd.steps.bit_length())), dpsgd.steps])
    knots = knots[knots <= dpsgd.steps]
    threshold = dpsgd.clip / np.maximum(norms, 1e-6 * norms.max())
    shares = []
    for taken in np.diff(knots, prepend=0).tolist():
        moments.advance(taken, dpsgd.dt, phase)
        moments.refresh()
        lengths = np.linalg.norm(moments.residual(found.samples), axis=1)
        variance = moments.variance(found.samples) / moments.outputs
        shares.append(exceeds(lengths, variance, threshold, moments.outputs).mean())
    return dpsgd, moments, average(knots, np.array(shares))


def _problem(A: ArrayLike, y: ArrayLike, A_test: ArrayLike, y_test: ArrayLike, normalise: bool) -> Problem:
    """Linear regression of one-hot targets on the features."""
    features, held_out = (_features(name, given, normalise) for name, given in (("A", A), ("A_test", A_test)))
    given = read_targets(LOSSES["softmax"], _labels("y", y), _labels("y_test", y_test))
    assert given.y_test is not None
    classes = np.eye(len(given.class_names))
    for name, rows, labels in (("y", features, given.y), ("y_test", held_out, given.y_test)):
        validate.same_length("A" if name == "y" else "A_test", rows, name, labels)
    if features.shape[1] != held_out.shape[1]:
        raise ValueError(
            f"A_test must have as many columns as A, got {held_out.shape[1]} and {features.shape[1]}"
        )
    return Problem(features, classes[given.y], "linear", "square", held_out, classes[given.y_test])


def _features(name: str, given: ArrayLike, normalise: bool) -> FloatArray:
    rows = validate.array(name, given, 2)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.any():
        raise ValueError(f"{name} must hold features other than 0, got only 0")
    return rows / np.where(norms > 0, norms, 1.0) if normalise else rows


def _labels(name: str, given: ArrayLike) -> ArrayLike:
    """Class numbers or names, from one-hot rows too."""
    if np.ndim(validate.plain(name, given)) != 2:
        return given
    rows = validate.array(name, given, 2)
    if not (np.isin(rows, (0.0, 1.0)).all() and (rows.sum(1) == 1.0).all()):
        raise ValueError(
            f"{name} must hold one-hot rows or a class per sample, got rows that are not one-hot"
        )
    return rows.argmax(1)


def _rates(given: ArrayLike | None, samples: int) -> tuple[float, ...]:
    if given is None:
        return tuple(q for q in SAMPLE_RATES if q == 1.0 or q * samples >= SMALLEST_BATCH)
    rates = np.unique(validate.array("sample_rates", given, 1))[::-1]
    if rates[0] > 1 or rates[-1] * samples < 1:
        raise ValueError(
            f"sample_rates must lie between 1/n = {1 / samples:.3g} and 1, got {rates[-1]:g} to {rates[0]:g}"
        )
    return tuple(rates.tolist())


def _steps(given: ArrayLike) -> tuple[int, ...]:
    counts = np.unique(validate.array("steps", given, 1))
    if counts[0] < 1 or counts[-1] > MOST_STEPS or (counts % 1 != 0).any():
        raise ValueError(
            f"steps must be whole numbers from 1 to {MOST_STEPS}, got {counts[0]:g} to {counts[-1]:g}: take "
            "fewer, larger steps"
        )
    return tuple(counts.astype(int).tolist())


def _clips(given: ArrayLike | None, norms: FloatArray) -> FloatArray:
    if given is None:
        # the residual of a one-hot target and a zero head has norm 1
        return np.geomspace(max(float(np.median(norms)), 1e-3 * norms.max()), 4 * norms.max(), 24)
    clips = np.unique(validate.array("clips", given, 1))
    validate.positive("clips", clips[0])
    return clips
