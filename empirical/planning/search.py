"""Trials of shares, and the search for their learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from empirical.planning.stand_in import Outcomes, Settings, Split, StandIn
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    pass
from empirical.planning.share_plan import deficit_of

# learning rates times clip that a search starts from; it goes on by the same factor
RATES = tuple(3.0**k for k in range(-3, 2))
_FACTOR, _FARTHEST = 3.0, 4
# draws of a round, at least two; standard errors at which a share is clearly worse, and so known well enough
_ROUND, _CLEARLY = 16, 4


class Trials:
    """Counted runs of a stand-in."""

    def __init__(
        self, net: StandIn, how: Settings, root: int, progress: Callable[[int], None] | None
    ) -> None:
        self.net, self.how, self.root, self.progress = net, how, root, progress
        self.done = 0

    def run(self, splits: Sequence[Split], *, stage: int, draws: range) -> Outcomes:
        """Return the end of the draws of one stage, which all splits share."""
        streams = [np.random.SeedSequence(self.root, spawn_key=(stage, i)) for i in draws]
        ends = self.net.run(self.how, splits, streams)
        self.done += len(splits) * len(draws)
        if self.progress is not None:
            self.progress(self.done)
        return ends


def tuned(trials: Trials, lengths: Sequence[int], draws: int) -> tuple[list[Split], list[str]]:
    """Each length of probing at its best rates: probing's own, then that of what follows it.

    And what to say of rates at an end of what was tried.
    """
    steps, clip = trials.how.steps, trials.how.clip

    def scores(splits: Sequence[Split]) -> list[tuple[float, float]]:
        ends = trials.run(splits, stage=0, draws=range(draws))
        return list(zip(ends.accuracy.mean(1).tolist(), (-ends.loss.mean(1)).tolist(), strict=True))

    start = [rate / clip for rate in RATES]
    lp_lr, last = _search(lambda rates: scores([Split(steps, rate, rate) for rate in rates]), start)
    found, edges = [], {f"probing's, {lp_lr:.3g}"} if last else set()
    for n in lengths:
        lr = lp_lr
        if n < steps:
            lr, last = _search(lambda rates, n=n: scores([Split(n, lp_lr, rate) for rate in rates]), start)
            edges |= {f"full fine-tuning's at share {n / steps:g}, {lr:.3g}"} if last else set()
        found.append(Split(n, lp_lr, lr))
    said = "the best rate is the last that was tried, another may be better: {}; scale X, or change clip"
    return found, [said.format("; ".join(sorted(edges)))] if edges else []


def compared(trials: Trials, splits: Sequence[Split], draws: int, resolution: float) -> Outcomes:
    """Runs of all splits, round by round, until all are known well enough relative to the best."""
    accuracy, loss = np.empty((2, len(splits), 0))
    while accuracy.shape[1] < draws:
        done = accuracy.shape[1]
        ends = trials.run(splits, stage=1, draws=range(done, min(done + _ROUND, draws)))
        accuracy, loss = np.hstack([accuracy, ends.accuracy]), np.hstack([loss, ends.loss])
        if resolved(accuracy, loss, resolution):
            break
    return Outcomes(accuracy, loss)


def resolved(accuracy: FloatArray, loss: FloatArray, resolution: float) -> bool:
    """Whether all shares are known well enough relative to the best."""
    mean, error = deficit_of(accuracy, loss)
    return bool((error <= np.maximum(resolution, mean / _CLEARLY)).all())


def _search(
    scores: Callable[[Sequence[float]], Sequence[tuple[float, float]]], start: Sequence[float]
) -> tuple[float, bool]:
    """Return the rate of the highest accuracy (on ties, the lowest loss), and whether to search further.

    From ``start`` on outwards as long as one at an end is more accurate than all others: on data that are
    easily told apart loss alone would ask for ever larger rates.
    """
    tried = dict(zip(start, scores(start), strict=True))
    while True:
        best = max(tried, key=tried.__getitem__)
        others = max(accuracy for rate, (accuracy, _) in tried.items() if rate != best)
        last = best in (min(tried), max(tried)) and tried[best][0] > others
        if not last or len(tried) == len(start) + _FARTHEST:
            return best, last
        new = best * _FACTOR if best == max(tried) else best / _FACTOR
        (tried[new],) = scores([new])
