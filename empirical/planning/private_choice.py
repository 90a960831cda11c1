"""A plan as a private release: a noisy choice of head and share by a private held-out score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from empirical.recipe import Head
from langevin.support import validate
from langevin.support.validate import FloatArray


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
