"""Measured cost of engines of per-sample gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from empirical.recipe import Engine
from empirical.train.gradients.plain import Gradients

# numbers that a pass computes for one image from which on measuring takes less time than a wrong choice
SLOW = 2**20
# an engine goes before an earlier one if it takes less than this share of its time: other programs disturb
# the measurement, and a choice that changes from run to run changes the last bits of results
_DECISIVE = 2 / 3
# of which the first also compiles and fills caches
_PASSES = 3
_MEASURED: tuple[Engine, ...] = ("ghost", "hooks", "functorch")


def ordered(kinds: Sequence[Engine], make: Callable[[Engine], Gradients], x: Tensor) -> list[Engine]:
    """Order engines by the time that they take, those of about the same time as they are given.

    Parameters
    ----------
    kinds : sequence of str
        "closed", which is always fast, and "loop", which is always slow, are not measured.
    make : callable
        Makes an engine by its name.
    x : Tensor, shape (n, ...)
        Inputs to measure with.

    Returns
    -------
    list of str
        An engine that fails comes behind those that do not.
    """
    seconds: dict[Engine, float] = {
        kind: _seconds(make, kind, x) for kind in kinds if kind in _MEASURED and len(kinds) > 1
    }
    left: list[Engine] = list(seconds)
    found: list[Engine] = []
    while left:
        most = min(seconds[kind] for kind in left) / _DECISIVE
        found.append(next(kind for kind in left if seconds[kind] <= most))
        left.remove(found[-1])
    before: list[Engine] = [kind for kind in kinds if kind not in seconds and kind != "loop"]
    after: list[Engine] = [kind for kind in kinds if kind == "loop"]
    return before + found + after


def _seconds(make: Callable[[Engine], Gradients], kind: Engine, x: Tensor) -> float:
    """Least time of a few batches; infinite for an engine that does not work."""
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    best = math.inf
    try:
        gradients = make(kind)
        for _ in range(_PASSES):
            begun = _now(x)
            norms = gradients.norms(x, y)
            gradients.total(norms)
            best = min(best, _now(x) - begun)
        gradients.close()
    except Exception:  # what is wrong is found, and named, where engines are compared
        return math.inf
    return best


def _now(x: Tensor) -> float:
    """Time in seconds: of a processor that of this process alone, whatever else runs."""
    if x.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(x.device)
    return time.perf_counter()
