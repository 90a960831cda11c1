"""The search for learning rates in rounds, on draws that all shares and heads have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from empirical.planning.comparison import Chosen, Outcomes, as_good_as, best_of, chosen, deficit_of
from empirical.planning.stand_in import Split
from empirical.planning.trials import Trials
from empirical.recipe import Head

# learning rates times clip that a search starts from; it goes on by the same factor
FACTOR = 3.0
RATES = tuple(FACTOR**k for k in range(-3, 2))
_FARTHEST = 4
# draws of the first round, which doubles in each, and of the first comparison of shares
_FIRST, LEAST = 2, 8
# draws by which probing's rate is settled
_PROBING = 16
# standard errors at which an alternative is clearly worse, and so known well enough
_CLEARLY = 4


@dataclass
class Lane:
    """One share with one head: the rates that are left of those tried, increasing.

    Attributes
    ----------
    head : {"gaussian", "zero", "prototype"}
    split : callable
        The run at a rate.
    rates : list of float
    last : bool
        Whether the best rate is the last that was tried, and another may be better.
    """

    head: Head
    split: Callable[[float], Split]
    rates: list[float]
    last: bool = False

    @property
    def splits(self) -> list[Split]:
        """The runs that are left."""
        return [self.split(rate) for rate in self.rates]

    def outcomes(self, trials: Trials, draws: int) -> Outcomes:
        """Ends of the rates that are left."""
        return trials.run(self.head, self.splits, draws)

    def extend(self, trials: Trials, draws: int) -> None:
        """Try rates further out as long as one at an end is more accurate than all others.

        On data that are easily told apart loss alone would ask for ever larger rates.
        """
        for _ in range(_FARTHEST + 1):
            ends = self.outcomes(trials, draws)
            best, mean = best_of(*ends), ends.accuracy.mean(1)
            self.last = best in (0, len(mean) - 1) and mean[best] > np.delete(mean, best).max(initial=0.0)
            if not self.last or _ == _FARTHEST:
                return
            rate = self.rates[best]
            self.rates = sorted([*self.rates, rate / FACTOR if best == 0 else rate * FACTOR])

    def narrow(self, trials: Trials, draws: int) -> None:
        """Drop the rates that are worse beyond noise and, of the others, the worst until half are left.

        Two that noise does not tell apart both stay.
        """
        ends = self.outcomes(trials, draws)
        keep = as_good_as(*ends)
        keep[best_of(*ends)] = True
        most = max(2, (len(keep) + 1) // 2)
        order = np.lexsort((ends.loss.mean(1), -ends.accuracy.mean(1), ~keep))
        self.rates = sorted(self.rates[place] for place in order[: min(most, keep.sum())])

    def choose(self, trials: Trials, draws: int) -> tuple[float, Chosen]:
        """The smallest rate within noise of the best, and its runs."""
        found = chosen(*self.outcomes(trials, draws))
        return self.rates[found.place], found


def probing_rate(trials: Trials, head: Head, start: Sequence[float], draws: int) -> tuple[float, Lane]:
    """Learning rate of probing throughout, on a few rounds of draws."""
    steps = trials.steps
    lane = Lane(head, lambda rate: Split(steps, rate, rate), list(start))
    last = min(_PROBING, draws)
    n = min(_FIRST, last)
    lane.extend(trials, n)
    while True:
        lane.narrow(trials, n)
        if n == last or len(lane.rates) == 1:
            return lane.choose(trials, n)[0], lane
        n = min(2 * n, last)


class Start(NamedTuple):
    """Where a search begins: rates of probing, and of full fine-tuning."""

    lp: Sequence[float]
    fft: Sequence[float]


def around(rate: float) -> list[float]:
    """A rate and its neighbours."""
    return [rate / FACTOR, rate, rate * FACTOR]


def lanes_of(
    trials: Trials, head: Head, lengths: Sequence[int], start: Start, draws: int
) -> tuple[list[Lane], Start]:
    """A lane for each number of steps of probing, with the rates that its first draws leave open.

    The rates of probing, and of the first share, are searched over all of ``start``, those of the other
    shares around the best of the one before.

    Returns
    -------
    list of Lane
    Start
        Around the best rates of probing and of the first share, for the next head.
    """
    lp_lr, probing = probing_rate(trials, head, start.lp, draws)
    probing.rates = [lp_lr]
    lanes, near, first = [], list(start.fft), start.fft
    n = min(_FIRST, draws)
    for steps in lengths:
        if steps == trials.steps:
            lanes.append(probing)
            continue
        lane = Lane(head, lambda rate, steps=steps: Split(steps, lp_lr, rate), near)
        lane.extend(trials, n)
        near = around(lane.rates[best_of(*lane.outcomes(trials, n))])
        if not lanes:
            first = near
        lanes.append(lane)
    return lanes, Start(around(lp_lr), first)


def raced(trials: Trials, lanes: Sequence[Lane], draws: int, resolution: float) -> int:
    """Halve the rates of all lanes in rounds of common draws; return the number of draws made.

    Lanes that are clearly worse than the best go on with one rate: which does not matter any more. The rounds
    end when each lane's accuracy, the choice of its rate included, is known well enough relative to the best.
    """
    n = min(_FIRST, draws)
    while True:
        for lane in lanes:
            lane.narrow(trials, n)
        found = stacked(trials, lanes, n)
        if n == draws or (n >= LEAST and resolved(*found, resolution)):
            return n
        mean, error = deficit_of(*found)
        for lane, worse in zip(lanes, (mean > resolution) & (mean > _CLEARLY * error), strict=True):
            if worse and n > _FIRST:
                lane.rates = [lane.choose(trials, n)[0]]
        n = min(2 * n, draws)


def stacked(trials: Trials, lanes: Sequence[Lane], draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy and loss by lane and draw, and the error of each lane's choice."""
    found = [lane.choose(trials, draws)[1] for lane in lanes]
    accuracy, loss = ([getattr(choice, name) for choice in found] for name in Outcomes._fields)
    return np.array(accuracy), np.array(loss), np.array([choice.error for choice in found])


def resolved(accuracy: np.ndarray, loss: np.ndarray, choice: np.ndarray, resolution: float) -> bool:
    """Whether all alternatives are known well enough relative to the best."""
    mean, error = deficit_of(accuracy, loss, choice)
    return bool((error <= np.maximum(resolution, mean / _CLEARLY)).all())
