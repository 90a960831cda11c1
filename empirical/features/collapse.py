"""Neural collapse."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from empirical.data.splits import Labels
from empirical.features.measures import matrix, unit_rows
from langevin.support import validate


class Collapse(NamedTuple):
    """Measures of neural collapse, all 0 if it is complete; see `neural_collapse`."""

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float


def neural_collapse(features: ArrayLike, labels: Labels, head: nn.Linear | None = None) -> Collapse:
    """Measure how far features are from neural collapse [1]_: of classes, of their means, and of the head.

    With class means ``mu_c``, their mean ``mu``, and the matrix ``M`` of rows ``mu_c - mu``:

    - ``nc1``: ``tr(S_W S_B^+) / C`` of the covariances within and between classes;
    - ``nc2_norms``: standard deviation over mean of the norms ``|mu_c - mu|``;
    - ``nc2_angles``: mean over pairs of classes of ``|cos(mu_c - mu, mu_d - mu) + 1 / (C - 1)|``;
    - ``nc3``: ``|W / |W| - M / |M||^2`` in Frobenius norms, from 0 to 4, of the head's weights ``W``;
    - ``nc4``: share of samples whose nearest ``mu_c`` is not the class that the head chooses.

    Every class weighs the same in ``mu`` and ``S_B``; in ``S_W``, every sample does.

    Parameters
    ----------
    features : array_like, shape (n, p)
        Of training samples.
    labels : ndarray of int, shape (n,)
        From 0; each class has a sample.
    head : nn.Linear, optional
        From ``p`` features to the classes.

    Returns
    -------
    Collapse
        nan for what is not defined: ``nc3`` and ``nc4`` without a head or with one of zero weights, and what
        divides by the spread of equal class means.

    References
    ----------
    .. [1] Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
       training", PNAS 117 (2020).

    Examples
    --------
    >>> simplex = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    >>> collapse = neural_collapse(simplex, np.arange(8) % 4)
    >>> [round(value, 12) for value in collapse[:3]]
    [0.0, 0.0, 0.0]
    """
    x = matrix("features", features)
    labels = validate.plain("labels", labels)
    if labels.shape != (len(x),):
        raise ValueError(f"labels must have the shape ({len(x)},), one for each row, got {labels.shape}")
    classes = int(labels.max()) + 1 if head is None else head.out_features
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or classes < 2 or not counts.all():
        raise ValueError(
            f"labels must hold each of at least two classes, and no other than the head's, got counts "
            f"{counts.tolist()} for {classes} class(es): use more samples, or relabel from 0"
        )
    means = np.array([x[labels == label].mean(axis=0) for label in range(classes)])
    centred = means - means.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    nan = float("nan")
    if not norms.any():
        return Collapse(nan, nan, nan, nan, nan)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    kept = singular > singular[0] * max(centred.shape) * np.finfo(float).eps
    # S_B = M^T M / C
    within = (x - means[labels]) @ directions[kept].T / singular[kept]
    unit = unit_rows(centred)
    cosines = (unit @ unit.T)[np.triu_indices(classes, 1)]
    nc3 = nc4 = nan
    if head is not None:
        W = head.weight.detach().double().cpu().numpy()
        bias = 0.0 if head.bias is None else head.bias.detach().double().cpu().numpy()
        if W.any():
            nc3 = float(((W / np.linalg.norm(W) - centred / np.linalg.norm(centred)) ** 2).sum())
            # |x|^2 is the same for all means
            nearest = ((means**2).sum(axis=1) - 2 * x @ means.T).argmin(axis=1)
            nc4 = float((nearest != (x @ W.T + bias).argmax(axis=1)).mean())
    return Collapse(
        nc1=float((within**2).sum() / len(x)),
        nc2_norms=float(norms.std() / norms.mean()),
        nc2_angles=float(abs(cosines + 1 / (classes - 1)).mean()),
        nc3=nc3,
        nc4=nc4,
    )
