"""How far data and features are from assumptions 3.1 and 3.2, and 3.1' and 3.2' of K classes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bounds.features.blocks import NO_NEURONS, ROUNDOFF
from bounds.support.covers import ANY, Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.alignment import CONES, head_excess
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights
from langevin.support.validate import FloatArray

KINDS = {"one output": Covers(ANY, ANY), "K classes": Covers(tuple(CONES), ANY, outputs=True)}
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
WORST = 5
# classes that a report names
NAMED = 10
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
        The class whose cone each neuron is in, or comes closest to: -1 or +1, or the number of one of K
        classes, NaN for a neuron that is active on no sample, which never moves and violates nothing.
    margins : ndarray, shape (h,)
        Cone margin: least ``cos(w_j, x_i)`` over the samples of the class and ``-cos`` over the others;
        negative: violated.
    dead, everywhere_active : float
        Share of neurons active on no sample, or on all of them.
    misaligned : float
        Share of neurons whose head is outside the aligned cone of their class: of the wrong sign with one
        output.
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
        Whether the labels are -1 and +1, or classes; if not, no assumption holds.
    class_names : tuple of str
        Of K classes, whose assumptions are 3.1' and 3.2'; empty with one output.
    centred : Separability or None
        3.1 of the inputs less their mean, where they are never negative and violate it across classes.
    """

    separability: Separability
    collapse: Collapse | None
    spread: dict[int, float]
    feature_spread: dict[int, float]
    rank: int
    linear_one_sign: float
    labels: bool
    class_names: tuple[str, ...] = ()
    centred: Separability | None = None

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
        prime = "'" if self.class_names else ""
        lines = [
            f"3.1{prime} orthogonal separability: {'holds' if a.holds else 'fails'}; {_pairs(a)}",
            f"3.2{prime} collapsed features: {features}",
            f"spread within a class: {self._spread()}",
        ]
        if self.centred is not None:
            lines[1:1] = [
                f"    no input is negative, as of features after a ReLU: 3.1{prime} cannot hold across",
                "    classes that share an active feature, unless the inputs are centred",
                f"    centred by their mean: {_pairs(self.centred)}",
                "    take the mean of public features: that of private ones is a release and costs privacy",
            ]
        if not self.labels:
            lines.insert(0, "the labels are not -1 and +1: neither assumption applies")
        return "\n".join(lines)

    def _spread(self) -> str:
        if len(self.spread) > NAMED:
            angles = self.spread.values()
            return f"{min(angles):.1f} to {max(angles):.1f} degrees in {len(angles)} classes"
        names = dict(enumerate(self.class_names)) or {1: "+1", -1: "-1"}
        return ", ".join(f"{names[s]}: {angle:.1f} degrees" for s, angle in self.spread.items())


def _pairs(found: Separability) -> str:
    return (
        f"pairs that violate it: {_percentage(found.within_violations)} within, "
        f"{_percentage(found.across_violations)} across classes; margin {found.margin:.3g}"
    )


def _percentage(violations: float) -> str:
    return "none to compare" if math.isnan(violations) else f"{violations:.1%}"


@declares(KINDS)
def check_assumptions(problem: Problem, weights: Weights) -> Assumptions:
    """Measure how far data and features are from assumptions 3.1 and 3.2.

    Of [1]_. Assumption 3.1: ``<x_i, x_k> > 0`` within a class and ``<= 0`` across classes. Assumption 3.2:
    each ``w_j`` has ``w_j . x_i > 0`` exactly on the samples of one class and no product is 0. Products below
    1e-12 of the norms count as 0. With K classes these are assumptions 3.1' and 3.2' (new).

    Parameters
    ----------
    problem, weights
        Data and first layer; with one output and labels that are not -1 and +1 the sign of a label is its
        class.

    Returns
    -------
    Assumptions
        ``str()`` of it is a report of a few lines. Reading it costs privacy if the data are private.

    Raises
    ------
    ValueError
        If the problem has K outputs that are not classes.

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
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> check_assumptions(problem, Weights(1.5 * np.eye(3) - 0.5, np.zeros((3, 3)))).hold
    True
    """
    require_moderate(problem, weights, pairs=True)
    several = problem.outputs_dim > 1
    KINDS["K classes" if several else "one output"].require(problem)
    y = problem.y if several else np.where(problem.y > 0, 1, -1)
    # ties between classes go to the first
    labels = range(problem.outputs_dim) if several else (1, -1)
    norms = np.sqrt(problem.squared_norms)
    units = _units(problem.X)
    spread, feature_spread = {}, {}
    A = problem.features(weights.W)
    for label in labels:
        rows = y == label
        if rows.any():
            mean = units[rows].mean(0)
            cosine = units[rows] @ mean / max(float(np.linalg.norm(mean)), 1e-300)
            spread[label] = float(np.degrees(np.arccos(np.clip(cosine.min(), -1.0, 1.0))))
            centre = A[rows].mean(0)
            size = float(np.linalg.norm(centre))
            distance = float(np.sqrt(((A[rows] - centre) ** 2).sum(1).mean()))
            feature_spread[label] = distance / size if size > 0 else 0.0
    collapse, sided = None, np.nan
    if not isinstance(weights, GramWeights):
        cosines = _cosines(weights, units)
        collapse = _collapse(problem, weights, cosines, y, np.array(labels))
        if not several:
            signed = cosines * y[:, None]
            sided = ((signed > 0).all(0) | (signed < 0).all(0)).mean()
    separability, centred = _separability(units, y, int((norms == 0).sum())), None
    if problem.X.min() >= 0 and separability.across_violations > 0:
        X = problem.X - problem.X.mean(0)
        centred = _separability(_units(X), y, int((X == 0).all(1).sum()))
    return Assumptions(
        separability,
        collapse,
        spread,
        feature_spread,
        int(np.linalg.matrix_rank(problem.X)),
        float(sided),
        problem.classification,
        problem.class_names,
        centred,
    )


def _units(X: FloatArray) -> FloatArray:
    """Rows of length 1; 0 where a row is 0."""
    norms = np.linalg.norm(X, axis=1)
    return X / np.where(norms > 0, norms, 1.0)[:, None]


def _cosines(weights: Weights, units: FloatArray) -> FloatArray:
    """``cos(x_i, w_j)``, shape (n, h), roundoff cut; 0 for a zero vector."""
    cosines = units @ _units(weights.W).T
    return np.where(np.abs(cosines) <= ROUNDOFF, 0.0, cosines)


def _separability(units: FloatArray, s: np.ndarray, zeros: int) -> Separability:
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


def _collapse(
    problem: Problem, weights: Weights, cosines: FloatArray, y: np.ndarray, labels: np.ndarray
) -> Collapse:
    n, h = cosines.shape
    rows = [y == label for label in labels]
    least = np.array([cosines[own].min(0, initial=np.inf) for own in rows])
    most = np.array([cosines[own].max(0, initial=-np.inf) for own in rows])
    passive, active = cosines <= 0, cosines >= 0
    wrong = np.array([passive[own].sum(0) - active[own].sum(0) for own in rows]) + active.sum(0)
    margins = np.array([np.minimum(low, -np.delete(most, k, 0).max(0)) for k, low in enumerate(least)])
    # fewest samples on the wrong side, then the best margin
    margins[wrong > wrong.min(0)] = -np.inf
    best = margins.argmax(0)
    classes, margin, bad_pairs = labels[best].astype(float), margins.max(0), wrong.min(0)
    if problem.outputs_dim > 1:
        idle = (cosines < 0).all(0)
        misaligned = ((head_excess(problem, weights.v, labels[best]) > 0).any(1) & ~idle).mean()
        classes[idle], margin[idle], bad_pairs[idle] = np.nan, -cosines[:, idle].max(0), 0
    else:
        misaligned = (classes * weights.v < 0).mean()
    bad = margin <= 0
    order = np.argsort(margin)[:WORST]
    shown = np.where(y[:, None] == labels[best], cosines, -cosines).argmin(0)
    return Collapse(
        not bad.any(),
        float(bad.mean()),
        float(bad_pairs.sum() / (n * h)),
        classes,
        margin,
        float((cosines <= 0).all(0).mean()),
        float((cosines > 0).all(0).mean()),
        float(misaligned),
        [(int(j), int(shown[j]), float(margin[j])) for j in order if bad[j]],
    )
