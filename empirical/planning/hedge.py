"""What frozen features leave open: whether full fine-tuning can find more than they show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from empirical.planning.stand_in import StandIn
from langevin.support.validate import FloatArray

# of a world
VISIBLE, HIDDEN = "nothing hidden", "hidden directions"
# a world in which nothing at all is hidden is the extreme one: weights by which plans for the study's six
# tasks lose least
_WEIGHTS = {VISIBLE: 0.25, HIDDEN: 0.75}
# accuracy that hidden directions alone allow, where no source says what the body can reach
CEILING = 0.9
# more than chance, less than certainty: what a finite signal can give
_LEAST, _MOST = 0.05, 0.995
# standard errors by which features of the source must be better told apart to be a sign of a shift
_CLEARLY = 2


class World(NamedTuple):
    """A net, and its weight in the mean over the worlds."""

    net: StandIn
    weight: float


def hidden_world(net: StandIn, ceiling: float, random: np.random.Generator) -> StandIn:
    """A net with the same features, whose layer ignores directions of its inputs that tell classes apart.

    Nothing in frozen features contradicts it: features, probing and the start are the same. As many
    directions are added as the inputs have, with the same mean square: the classes' means are orthogonal,
    the noise is Gaussian, and its size such that these directions alone allow the accuracy ``ceiling``. Full
    fine-tuning can find them, probing cannot.

    Parameters
    ----------
    net : StandIn
    ceiling : float
    random : Generator
    """
    dims = max(net.X.shape[1], net.classes)
    size = float(np.sqrt((net.X**2).sum(1).mean()))
    signal = distance(float(np.clip(ceiling, 1 / net.classes + _LEAST, _MOST)), net.classes)
    scale = size / np.sqrt(signal**2 + dims)

    def added(labels: NDArray[np.int64]) -> FloatArray:
        noise = random.standard_normal((len(labels), dims))
        return scale * (signal * np.eye(net.classes, dims)[labels] + noise)

    return replace(
        net,
        X=np.hstack([net.X, added(net.labels)]),
        X_test=np.hstack([net.X_test, added(net.labels_test)]),
        W=np.hstack([net.W, np.zeros((len(net.W), dims))]),
    )


def distance(accuracy: float, classes: int) -> float:
    """Norm of orthogonal class means, in standard deviations of the noise, that allows an accuracy.

    Examples
    --------
    >>> round(distance(0.9, 10), 2)
    2.98
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def excess(size: float) -> float:
        return float(weights @ norm.cdf(nodes + size) ** (classes - 1)) - accuracy

    found: Any = brentq(excess, 0.0, 20.0)
    return float(found)


def probe_accuracy(
    X: FloatArray, labels: NDArray[np.int64], random: np.random.Generator
) -> tuple[float, float]:
    """Accuracy of a linear classifier without privacy on a held-out third, and its standard error."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.preprocessing import StandardScaler

    order = random.permutation(len(X))
    test, train = order[: max(1, len(X) // 3)], order[max(1, len(X) // 3) :]
    scaler = StandardScaler().fit(X[train])
    model = RidgeClassifierCV(np.logspace(-1, 4, 6)).fit(scaler.transform(X[train]), labels[train])
    found = float(np.mean(model.predict(scaler.transform(X[test])) == labels[test]))
    return found, float(np.sqrt(found * (1 - found) / len(test)))


def worlds_of(
    net: StandIn,
    *,
    layer: bool,
    source: tuple[FloatArray, NDArray[np.int64]] | None,
    random: np.random.Generator,
) -> tuple[dict[str, World], list[str]]:
    """What the inputs leave open, and what to say of it.

    Parameters
    ----------
    net : StandIn
        Of the data as given.
    layer : bool
        Whether the body's last layer is known, so that the net shows what full fine-tuning can change.
    source : (X, labels) or None
        The same body's features of public data without the shift.
    random : Generator
    """
    worlds = {VISIBLE: World(net, 1.0)}
    if layer:
        return worlds, []
    ceiling, said = (
        CEILING,
        "nothing tells whether full fine-tuning can help: give the last layer W, or X_source",
    )
    if source is not None:
        (own, own_error), (there, error) = (
            probe_accuracy(X, labels, random) for X, labels in ((net.X, net.labels), source)
        )
        told = f"a probe tells {there:.1%} of the source apart and {own:.1%} of these samples"
        if there - own < _CLEARLY * float(np.hypot(own_error, error)):
            return worlds, [f"{told}: no shift shows, full fine-tuning is taken to find nothing hidden"]
        ceiling, said = there, f"{told}: the body may find as much again"
    nets = {VISIBLE: net, HIDDEN: hidden_world(net, ceiling, random)}
    return {name: World(found, _WEIGHTS[name]) for name, found in nets.items()}, [
        f"{said}; shares are judged by their mean regret over features that show all and features that hide "
        f"directions which alone allow an accuracy of {ceiling:.2g}"
    ]
