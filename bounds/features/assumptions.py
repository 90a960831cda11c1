"""How far data and features are from assumptions 3.1 and 3.2."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bounds.features.blocks import NO_NEURONS, ROUNDOFF
from bounds.support.covers import ANY, Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights
from langevin.support.validate import FloatArray

COVERS = Covers(ANY, ANY)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
WORST = 5
CHUNK = 1024


@dataclass(frozen=True)
class Separability:
    """Assumption 3.1, orthogonal separability, over the pairs of distinct samples.

    Attributes
    ----------
    holds : bool
        Every product within a class is positive and every product across classes at most 0.
    within_violations, across_violations : float
        Share of the pairs that violate it; NaN where there is no such pair.
    violations : float
        Share of all pairs.
    zero_inputs : int
        Samples ``x_i = 0``, which violate it on their own.
    margin : float
        ``mu``: the least of ``cos(x_i, x_k)`` within a class and ``-cos`` across; negative: violated.
    least_within, largest_across : float
        The cosines that decide it.
    within_quantiles, across_quantiles : tuple of float
        Cosines at `QUANTILES`, over at most the first 4096 samples.
    worst : list of (int, int, float)
        Pairs that violate it most, and their cosine.
    """

    holds: bool
    within_violations: float
    across_violations: float
    violations: float
    zero_inputs: int
    margin: float
    least_within: float
    largest_across: float
    within_quantiles: tuple[float, ...]
    across_quantiles: tuple[float, ...]
    worst: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Collapse:
    """Assumption 3.2, collapsed features: every neuron strictly in the cone of one class.

    Attributes
    ----------
    holds : bool
    violations : float
        Share of neurons in no class's cone.
    pair_violations : float
        Share of pairs (neuron, sample) on the wrong side of the neuron's best class.
    classes : ndarray, shape (h,)
        The class whose cone each neuron is in, or comes closest to.
    margins : ndarray, shape (h,)
        Cone margin: least ``s_j y_i cos(w_j, x_i)`` over the samples; negative: violated.
    dead, everywhere_active : float
        Share of neurons active on no sample, or on all of them.
    misaligned : float
        Share of neurons whose head has the wrong sign for their class.
    worst : list of (int, int, float)
        Neurons that violate it most, the sample that shows it, and their margin.
    """

    holds: bool
    violations: float
    pair_violations: float
    classes: FloatArray
    margins: FloatArray
    dead: float
    everywhere_active: float
    misaligned: float
    worst: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Assumptions:
    """State of the assumptions on one problem and its weights; see `check_assumptions`.

    Attributes
    ----------
    separability : Separability
        3.1.
    collapse : Collapse or None
        3.2; None for `langevin.GramWeights`, which tell no single neurons.
    spread : dict
        By class: largest angle, in degrees, between a sample and its class mean.
    feature_spread : dict
        By class: root mean square distance of the hidden features from their class mean, over that
        mean's norm; 0 on collapsed features.
    rank : int
        Rank of the inputs.
    linear_one_sign : float
        Share of neurons that keep one sign of ``y_i w_j . x_i``: what a linear net's sandwich needs; NaN
        where there are no single neurons.
    labels : bool
        Whether the labels are -1 and +1; if not, no assumption holds.
    """

    separability: Separability
    collapse: Collapse | None
    spread: dict[int, float]
    feature_spread: dict[int, float]
    rank: int
    linear_one_sign: float
    labels: bool

    @property
    def hold(self) -> bool:
        """Tell whether both assumptions hold."""
        return self.labels and self.separability.holds and self.collapse is not None and self.collapse.holds

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dictionaries for JSON."""
        out = asdict(self)
        if self.collapse is not None:
            for name in ("classes", "margins"):
                out["collapse"][name] = out["collapse"][name].tolist()
        return out

    def __str__(self) -> str:
        a, b = self.separability, self.collapse
        if b is None:
            features = f"unknown: {NO_NEURONS}"
        else:
            features = (
                f"{'holds' if b.holds else 'fails'}; neurons that violate it: {b.violations:.1%}, "
                f"pairs {b.pair_violations:.1%}; least cone margin {b.margins.min():.3g}"
            )
        lines = [
            f"3.1 orthogonal separability: {'holds' if a.holds else 'fails'}; pairs that violate it: "
            f"{_percentage(a.within_violations)} within, {_percentage(a.across_violations)} across classes; "
            f"margin {a.margin:.3g}",
            f"3.2 collapsed features: {features}",
            "spread within a class: "
            + ", ".join(f"{s:+d}: {angle:.1f} degrees" for s, angle in self.spread.items()),
        ]
        if not self.labels:
            lines.insert(0, "the labels are not -1 and +1: neither assumption applies")
        return "\n".join(lines)


def _percentage(violations: float) -> str:
    return "none to compare" if math.isnan(violations) else f"{violations:.1%}"


@declares(COVERS)
def check_assumptions(problem: Problem, weights: Weights) -> Assumptions:
    """Measure how far data and features are from assumptions 3.1 and 3.2.

    Of [1]_. Assumption 3.1: ``<x_i, x_k> > 0`` within a class and ``<= 0`` across classes. Assumption 3.2:
    each ``w_j`` has ``w_j . x_i > 0`` exactly on the samples of one class and no product is 0. Products below
    1e-12 of the norms count as 0.

    Parameters
    ----------
    problem, weights
        Data and first layer; with labels that are not -1 and +1 the sign of a label is its class.

    Returns
    -------
    Assumptions
        ``str()`` of it is a report of a few lines. Reading it costs privacy if the data are private.

    Raises
    ------
    ValueError
        If the problem has K outputs.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905, assumptions 3.1 and 3.2.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0], [0.2, 0.9]], [1, -1, -1])
    >>> found = check_assumptions(problem, Weights([[1.0, -0.5], [-0.5, 1.0]], [0.1, 0.1]))
    >>> found.hold, found.collapse.holds, found.separability.across_violations
    (False, True, 0.5)
    >>> [(i, k) for i, k, _ in found.separability.worst]
    [(0, 2)]
    """
    require_moderate(problem, weights, pairs=True)
    COVERS.require(problem)
    s = np.where(problem.y > 0, 1.0, -1.0)
    norms = np.sqrt(problem.squared_norms)
    units = problem.X / np.where(norms > 0, norms, 1.0)[:, None]
    spread, feature_spread = {}, {}
    A = problem.features(weights.W)
    for sign in (1, -1):
        rows = s == sign
        if rows.any():
            mean = units[rows].mean(0)
            cosine = units[rows] @ mean / max(float(np.linalg.norm(mean)), 1e-300)
            spread[sign] = float(np.degrees(np.arccos(np.clip(cosine.min(), -1.0, 1.0))))
            centre = A[rows].mean(0)
            size = float(np.linalg.norm(centre))
            distance = float(np.sqrt(((A[rows] - centre) ** 2).sum(1).mean()))
            feature_spread[sign] = distance / size if size > 0 else 0.0
    collapse, sided = None, np.nan
    if not isinstance(weights, GramWeights):
        cosines = _cosines(problem, weights, units) * s[:, None]
        sided = ((cosines > 0).all(0) | (cosines < 0).all(0)).mean()
        collapse = _collapse(cosines, s, weights)
    return Assumptions(
        _separability(units, s, int((norms == 0).sum())),
        collapse,
        spread,
        feature_spread,
        int(np.linalg.matrix_rank(problem.X)),
        float(sided),
        problem.classification,
    )


def _cosines(problem: Problem, weights: Weights, units: FloatArray) -> FloatArray:
    """``cos(x_i, w_j)``, shape (n, h), roundoff cut; 0 for a zero vector."""
    sizes = np.linalg.norm(weights.W, axis=1)
    cosines = units @ (weights.W / np.where(sizes > 0, sizes, 1.0)[:, None]).T
    return np.where(np.abs(cosines) <= ROUNDOFF, 0.0, cosines)


def _separability(units: FloatArray, s: FloatArray, zeros: int) -> Separability:
    n = len(s)
    counts = {True: [0, 0], False: [0, 0]}
    extremes = {True: np.inf, False: -np.inf}
    offenders: list[tuple[float, int, int, float]] = []
    for start in range(0, n, CHUNK):
        rows = slice(start, min(start + CHUNK, n))
        cosines = units[rows] @ units.T
        cosines[np.abs(cosines) <= ROUNDOFF] = 0.0
        pairs = np.arange(n) > np.arange(n)[rows, None]
        same = s[rows, None] == s
        for within in (True, False):
            chosen = pairs & (same == within)
            values = cosines[chosen]
            bad = values <= 0 if within else values > 0
            counts[within][0] += int(bad.sum())
            counts[within][1] += len(values)
            if len(values):
                extremes[within] = (
                    min(extremes[within], values.min()) if within else max(extremes[within], values.max())
                )
            # how far on the wrong side
            excess = (-values if within else values)[bad]
            if len(excess):
                where = np.argwhere(chosen)[bad]
                keep = np.argsort(-excess)[:WORST]
                offenders += [
                    (float(excess[q]), start + int(where[q, 0]), int(where[q, 1]), float(values[bad][q]))
                    for q in keep
                ]
    offenders.sort(key=lambda item: -item[0])
    first = min(n, 4 * CHUNK)
    cosines = units[:first] @ units[:first].T
    upper = np.triu(np.ones((first, first), dtype=bool), 1)
    same = s[:first, None] == s[:first]
    violated = counts[True][0] + counts[False][0]
    total = counts[True][1] + counts[False][1]
    return Separability(
        violated == 0 and zeros == 0,
        _share(*counts[True]),
        _share(*counts[False]),
        _share(violated, total),
        zeros,
        float(min(extremes[True], -extremes[False])) if total else np.nan,
        float(extremes[True]) if counts[True][1] else np.nan,
        float(extremes[False]) if counts[False][1] else np.nan,
        _quantiles(cosines[upper & same]),
        _quantiles(cosines[upper & ~same]),
        [(i, k, cosine) for _, i, k, cosine in offenders[:WORST]],
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _quantiles(values: FloatArray) -> tuple[float, ...]:
    if not len(values):
        return (float("nan"),) * len(QUANTILES)
    return tuple(float(q) for q in np.quantile(values, QUANTILES))


def _collapse(cosines: FloatArray, s: FloatArray, weights: Weights) -> Collapse:
    # cosines times labels: a neuron in the cone of class +1 has all of them positive
    low, high = cosines.min(0), cosines.max(0)
    # fewest samples on the wrong side, then the better margin
    wrong = np.stack([(cosines <= 0).sum(0), (cosines >= 0).sum(0)])
    positive = np.where(wrong[0] == wrong[1], low >= -high, wrong[0] < wrong[1])
    classes = np.where(positive, 1.0, -1.0)
    margins = np.where(positive, low, -high)
    bad = margins <= 0
    order = np.argsort(margins)[:WORST]
    shown = np.where(positive, cosines.argmin(0), cosines.argmax(0))
    active = cosines * s[:, None] > 0
    return Collapse(
        not bad.any(),
        float(bad.mean()),
        float(np.minimum(*wrong).sum() / cosines.size),
        classes,
        margins,
        float((~active).all(0).mean()),
        float(active.all(0).mean()),
        float((classes * weights.v < 0).mean()),
        [(int(j), int(shown[j]), float(margins[j])) for j in order if bad[j]],
    )
