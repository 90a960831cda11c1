"""Clip factors of one output and of K, in NumPy."""

from __future__ import annotations

import math

import numpy as np

from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray


def clip_factors(norms: FloatArray, phase: Phase) -> FloatArray:
    """``c_i`` at gradient norms ``norms``; 1 at zero gradient under flat clipping."""
    if phase.clip is None:
        return np.ones_like(norms)
    if phase.clipping == "normalised":
        return phase.clip / (norms + phase.stabiliser)
    return phase.clip / np.maximum(norms, phase.clip)


def clipped_probing(r: FloatArray, features: FloatArray, phase: Phase) -> FloatArray:
    """Residuals of K outputs times their clip factors in linear probing.

    Parameters
    ----------
    r : ndarray, shape (n, K)
    features : ndarray, shape (n,)
        ``||A_i||``.
    phase : Phase

    Returns
    -------
    ndarray, shape (n, K)
    """
    if phase.clipping == "column" and phase.clip is not None:
        limit = phase.clip / math.sqrt(r.shape[1])
        return r * (limit / np.maximum(np.abs(r) * features[:, None], limit))
    # of the margin's clip sqrt(2) (1 - p_y), which is the largest |r_k|
    margin = phase.clipping == "margin"
    sizes = math.sqrt(2) * np.abs(r).max(axis=1) if margin else np.linalg.norm(r, axis=1)
    return r * clip_factors(sizes * features, phase)[:, None]
