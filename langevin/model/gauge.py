"""Softmax in gauge coordinates: the same number added to all outputs changes nothing (new).

With an orthonormal basis ``E (K, K - 1)`` of the vectors that sum to zero, ``V E`` determines the losses,
the drift and the norms of the gradients of a head ``V``; the rest, ``V 1 / sqrt(K)``, moves by noise alone
(theory for K outputs, section 0'). ``E`` is the first ``K - 1`` columns of the reflection that brings the
last axis to ``1 / sqrt(K)``, so that products with it cost ``O(K)``: `langevin.engine.kernels.outputs.gauge`.
"""

from __future__ import annotations

import numpy as np

from langevin.support.validate import FloatArray


def gauge_basis(outputs: int) -> FloatArray:
    """``E``, shape (K, K - 1), for K >= 2 outputs.

    Examples
    --------
    >>> E = gauge_basis(3)
    >>> bool(np.allclose(E.T @ E, np.eye(2)) and np.allclose(E.sum(axis=0), 0))
    True
    """
    root = outputs**0.5
    E = np.full((outputs, outputs - 1), -1 / (root * (root - 1)))
    E[np.arange(outputs - 1), np.arange(outputs - 1)] += 1
    E[-1] = 1 / root
    return E
