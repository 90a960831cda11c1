"""Features pre-trained on public data, kept in the user's cache folder."""

from __future__ import annotations

import hashlib

import numpy as np

from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.store import atomic, cache
from langevin.support.validate import FloatArray

# to a plateau of the accuracy, for inputs of norm about 1 and some thousand samples
TIME, DT = 0.4, 1e-3


def pretrained(public: Problem, start: Weights, *, name: str | None) -> FloatArray:
    """Features after the noiseless gradient flow on public data.

    Parameters
    ----------
    public : Problem
    start : Weights
    name : str or None
        Beginning of the name of the file in the cache folder; None: none is kept.

    Returns
    -------
    ndarray, shape (h, d)
        From the cache if they are there.
    """
    from langevin.solvers.zeroth import gradient_flow

    schedule = Schedule.fft(time=TIME)
    folder = cache.folder() if name else None
    if folder is None:
        return gradient_flow(public, start, schedule, dt=DT).W
    content = hashlib.sha256(repr((schedule, DT, public.activation)).encode())
    for array in (public.X, public.y, start.W, start.v):
        content.update(array.tobytes())
    path = folder / f"{name}-{content.hexdigest()[:16]}.npy"
    try:
        W = np.load(path, allow_pickle=False)
        if W.shape == start.W.shape and np.isfinite(W).all():
            return W
    except (OSError, ValueError, EOFError):
        pass  # missing or damaged: made again
    W = gradient_flow(public, start, schedule, dt=DT).W
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary:
            np.save(temporary, W, allow_pickle=False)
    except OSError:
        pass  # a cache that cannot be written is no reason to fail
    return W
