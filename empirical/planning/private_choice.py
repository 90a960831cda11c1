"""A plan as a private release: a noisy choice of head and share by a private held-out score."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from empirical.planning.settings import PlanSettings
from empirical.planning.stand_in import Split
from empirical.planning.trials import Trials, streams
from empirical.recipe import Head
from langevin.support import validate
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    from empirical.planning.share_plan import SharePlan


@dataclass(frozen=True)
class Released:
    """What a private plan releases about the private held-out rows: nothing but a choice.

    Attributes
    ----------
    head : {"gaussian", "zero", "prototype"}
    place : int
        Of the share.
    epsilon : float
        What the choice spends.
    """

    head: Head
    place: int
    epsilon: float


def release(
    trials: Trials, plan: SharePlan, rows: tuple[FloatArray, NDArray[np.int64]], chosen: PlanSettings
) -> Released:
    """Choose head and share by private rows; see `probabilities` for the proof.

    The noise comes from the system's entropy, not from the seed, which may be known.

    Parameters
    ----------
    trials : Trials
        Of public rows.
    plan : SharePlan
        Its alternatives, with their rates.
    rows : (X, labels)
        The private held-out rows.
    chosen : PlanSettings
    """
    assert chosen.plan_epsilon is not None
    kinds, scores = alternatives(trials, plan, rows)
    random = np.random.default_rng(secrets.randbits(128))
    head, place = kinds[choose(scores, chosen.plan_epsilon, random)]
    return Released(head, place, chosen.plan_epsilon)


def alternatives(
    trials: Trials, plan: SharePlan, rows: tuple[FloatArray, NDArray[np.int64]]
) -> tuple[list[tuple[Head, int]], FloatArray]:
    """Heads and shares, and how many of the private rows each gets right: a mean over the draws.

    An alternative that lost a run is left out, which is read off the training rows.
    """
    world = replace(trials.worlds[0], X_test=rows[0], labels_test=rows[1])
    kinds: list[tuple[Head, int]] = []
    scores: list[float] = []
    for head, runs in plan.runs.items():
        places = np.flatnonzero(np.isfinite(runs.loss).all(1)).tolist()
        lengths = [round(float(plan.shares[k]) * trials.steps) for k in places]
        splits = [
            Split(n, runs.lp_lr, float(runs.lr[k]) if n < trials.steps else runs.lp_lr)
            for n, k in zip(lengths, places, strict=True)
        ]
        draws = range(runs.accuracy.shape[1])
        right = world.run(trials.hows[head], splits, streams(trials.root, draws)).accuracy
        kinds.extend((head, place) for place in places)
        scores += (right.mean(1) * len(rows[1])).tolist()
    return kinds, np.array(scores)


def probabilities(scores: FloatArray, epsilon: float) -> FloatArray:
    r"""Chances of each alternative by the exponential mechanism: proportional to ``exp(epsilon score)``.

    New as it is used here; the mechanism is McSherry and Talwar's, for monotone scores. A score is the number
    of private held-out rows that an alternative gets right, a mean over runs that were *trained on public
    rows alone*.

    Proof of epsilon-DP under add-or-remove adjacency
        The trained networks do not depend on the private rows. Adding a row raises each score ``s_k`` by some
        ``a_k`` in [0, 1], the share of the runs that get it right. So ``exp(epsilon s_k)`` grows by a factor
        in ``[1, exp(epsilon)]``, and so does its sum over the alternatives. The ratio of the two, the chance
        of ``k``, changes by a factor in ``[exp(-epsilon), exp(epsilon)]``. Removing a row is the inverse.
        Everything else that the plan reports, rates and alternatives included, is computed from public rows.

    Accounting
        The training afterwards may depend on the choice. The choice is ``(epsilon_1, 0)``-DP and the training
        ``(epsilon_2, delta)``-DP for every choice: together they are ``(epsilon_1 + epsilon_2, delta)``-DP by
        basic composition, also when private held-out rows are trained on.

    Parameters
    ----------
    scores : ndarray, shape (m,)
    epsilon : float

    Returns
    -------
    ndarray, shape (m,)

    Examples
    --------
    >>> probabilities(np.array([10.0, 9.0]), epsilon=1.0).round(3)
    array([0.731, 0.269])
    """
    epsilon = validate.positive("epsilon", epsilon)
    weights = np.exp(epsilon * (scores - scores.max()))
    return weights / weights.sum()


def choose(scores: FloatArray, epsilon: float, random: np.random.Generator) -> int:
    """Draw an alternative; see `probabilities`."""
    return int(random.choice(len(scores), p=probabilities(scores, epsilon)))
