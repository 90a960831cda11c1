"""Splitting a budget between probing and fine-tuning, by simulation of each share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bounds.allocation.advice import Advice, split_advice
from empirical.planning.settings import PlanSettings
from empirical.planning.stand_in import Outcomes, Settings, Split, StandIn
from empirical.privacy.history import History, plan
from langevin.model.weights import Weights
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    pass
from empirical.planning.inputs import CONFIDENCE, THEORY_HEADS, THEORY_ROWS, Inputs, prepare_inputs, some_rows
from empirical.planning.search import Trials, compared, resolved, tuned
from empirical.planning.share_plan import (
    SharePlan,
    best_share_of,
    deficit_of,
    recommended_share,
    standard_error,
)


def plan_share(
    X: ArrayLike,
    y: ArrayLike,
    *,
    W: ArrayLike | None = None,
    v: ArrayLike | None = None,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    rng: RNG = 0,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> SharePlan:
    """Recommend the share of a privacy budget for linear probing before full fine-tuning.

    What the theorems say is gathered (`bounds.advice.split_advice`), and each share is simulated with the
    noise that the budget buys, at its best learning rates. Recommended is the largest share whose mean
    held-out accuracy is within one standard error of the highest: of shares that draws do not tell apart the
    one that costs least to compute and leaves the body most as it was. The simulation is of a two-layer net
    instead of the network, see `StandIn`: what full fine-tuning changes there is ``W``. Rates are searched
    in factors of 3, until none at an end is best, on draws of their own: probing's first, then for each share
    full fine-tuning's after that probing. As in the paper, tuning is not paid for in epsilon.

    **A plan read off private data is itself a release, which is not accounted for here.** Give features of
    public data that resemble the private ones, and the number of private ``samples``.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Frozen features; or, with ``W``, the inputs of a first layer.
    y : array_like, shape (n,)
        Labels, numbers or text, of two or more classes; a Series, Categorical or Index of pandas, too.
    W : array_like, shape (h, d), optional
        First layer, as the last one of the body (its bias as a column, with a column of ones in ``X``).
        Without it the features are the hidden layer, ``W`` the identity: full fine-tuning is a map of the
        features on top, which knows nothing of the layers below, and under a strong shift too much probing is
        planned.
    v : array_like, shape (h,) or (classes, h), optional
        Head; without it Gaussian ones of scale ``1 / sqrt(h)``, a new one for each draw.
    X_test, y_test : array_like, optional
        Held-out data; without them a fifth of each class is split off.
    rng : int, Generator or None
        Source of randomness (SPEC 7).
    progress : callable, optional
        Called with the number of runs done.
    **settings
        Fields of `PlanSettings`: ``epsilon``, which is required, and ``delta``, ``clip``, ``samples``,
        ``steps``, ``batch``, ``shares``, ``activation``, ``draws``, ``tuning_draws``, ``resolution``,
        ``theory``.

    Returns
    -------
    SharePlan

    Raises
    ------
    ValueError, TypeError
        On bad arguments, by name.
    ArithmeticError
        If runs of every share leave the range of numbers.

    Examples
    --------
    >>> from langevin import orthogonally_separable
    >>> data = orthogonally_separable(samples=100, dim=4, rng=0)
    >>> found = plan_share(
    ...     data.X, data.y, epsilon=1.0, delta=1e-3, steps=20, shares=[0, 0.5, 1], draws=2, tuning_draws=1
    ... )
    >>> found.share in found.as_good, found.history.mechanisms[0].noise_multiplier > 0
    (True, True)
    """
    from langevin.support.threads import one_blas_thread

    chosen = PlanSettings(**settings)
    root = int(generator(rng, "plan").integers(2**63))
    random = np.random.default_rng(np.random.SeedSequence(root))
    inputs = prepare_inputs(X, y, W, v, X_test, y_test, chosen.activation, random)
    samples = inputs.rows if chosen.samples is None else chosen.samples
    batch = samples / 10 if chosen.batch is None else chosen.batch
    chosen = replace(chosen, samples=samples, batch=batch)
    lengths = chosen.lengths
    released: dict[str, Any] = dict(delta=chosen.delta, steps=chosen.steps, clip=chosen.clip)
    nu = _noise_multiplier(plan(samples, batch, **released), chosen.epsilon)
    trials = Trials(inputs.net, Settings(chosen.steps, batch, nu, chosen.clip), root, progress)
    with one_blas_thread():
        splits, edges = tuned(trials, lengths, chosen.tuning_draws)
        ends = compared(trials, splits, chosen.draws, chosen.resolution)
        shares = np.array(lengths) / chosen.steps
        said = _theory(inputs, trials, splits[0].lp_lr, shares) if chosen.theory else {}
    if not np.isfinite(ends.loss).all(1).any():
        raise ArithmeticError(
            "every share had a run that left the range of numbers: scale the features X, or the head v"
        )
    caveats = (*edges, *_limits(inputs.net, ends, chosen.resolution))
    share = float(shares[recommended_share(*ends)])
    return SharePlan(
        shares,
        *ends,
        np.array([split.lr if split.lp_steps < chosen.steps else np.nan for split in splits]),
        splits[0].lp_lr,
        plan(samples, batch, lp_share=share, noise_multiplier=nu, **released),
        said,
        chosen.epsilon,
        chosen.clip,
        batch,
        inputs.net.method,
        (*inputs.notes, *caveats),
        inputs.names,
        inputs.net.activation,
        inputs.trained,
        caveats,
    )


@functools.lru_cache
def _noise_multiplier(history: History, epsilon: float) -> float:
    from empirical.privacy.calibrate import calibrate

    found = calibrate(history, epsilon).mechanisms[0].noise_multiplier
    assert found is not None
    return found


def _limits(net: StandIn, ends: Outcomes, resolution: float) -> list[str]:
    """Notes for the reader of the accuracies."""
    said = []
    if resolution and not resolved(*ends, resolution):
        _, error = deficit_of(*ends)
        said.append(
            f"after {ends.accuracy.shape[1]} draws shares are compared with the best to {error.max():.2g} of "
            f"accuracy, not to the resolution of {resolution:g}: take more draws"
        )
    largest = np.bincount(net.labels_test).max() / len(net.labels_test)
    best = ends.accuracy[best_share_of(*ends)]
    said.append(f"the largest class alone makes up {largest:.1%} of the held-out samples")
    if best.mean() - 2 * standard_error(best) <= largest:
        said[-1] += ": NO share is better than always guessing it, nothing was learnt that accuracy shows"
    return said


def _theory(inputs: Inputs, trials: Trials, lr: float, shares: FloatArray) -> dict[str, Advice]:
    """Evaluate the theorems at probing's rate on some rows."""
    net, names, how = inputs.net, inputs.names, trials.how
    random = np.random.default_rng(np.random.SeedSequence(trials.root, spawn_key=(2,)))
    count = min(max(THEORY_ROWS, len(names)), len(net.X))
    rows = np.sort(some_rows(net.labels, count, random))
    (leg,) = how.legs(Split(how.steps, lr, lr), count)
    heads = [net.head(random) for _ in range(1 if net.v is not None else THEORY_HEADS)]
    said = " and ".join(names) if len(names) == 2 else f"{len(names)} classes"
    rate = min(1.0, how.batch / len(net.X))
    advice = split_advice(
        net.problem(rows),
        [Weights(net.W, v.T) for v in heads],
        sigma=leg.phase.sigma,
        clip=how.clip,
        time=leg.phase.time,
        shares=shares,
        dt=leg.dt,
        sample_rate=rate,
        confidence=None if rate == 1 else CONFIDENCE,
    )
    return {said: advice}
