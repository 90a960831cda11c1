"""The bound (1b) along the zeroth-order path, of the diffusion or of the chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bounds.distance.flow import Flow, State
from bounds.distance.parts import Part
from bounds.support.clock import Clock
from bounds.support.growth import pull
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray


class _Growth:
    """How fast ``e`` may grow in one phase, in coordinates that have a drift."""

    def __init__(self, problem: Problem, part: Part, noise_rate: float) -> None:
        self.noise_rate, self.reach = noise_rate, part.reach
        self.spread = np.inf if part.spread is None else part.spread.rate
        # largest theta . b: half of what it adds to ||theta||^2
        self.energy = pull(problem, part.phase.method) / 2

    def rate(self, e: float, theta: float, speed: float) -> float:
        """``e'``, from ``||theta~||^2`` and the squared norm of the drift there."""
        return self.noise_rate + self._drifted(max(e, 0.0), theta, math.sqrt(speed), 0.0)

    def step(self, dt: float) -> Callable[[float, float, float], float]:
        """``e`` after a step of the chain, as a function of what `rate` takes."""

        def advance(e: float, theta: float, speed: float) -> float:
            return e + dt * (self.noise_rate + self._drifted(e, theta, math.sqrt(speed), dt))

        return advance

    def _drifted(self, e: float, theta: float, beta: float, dt: float) -> float:
        """Bound of what the drift adds to ``e`` per unit time, in steps of ``dt``."""
        if e == 0.0 or self.spread == 0.0:
            return 0.0
        spread = self.spread * e
        if math.isinf(self.reach):
            return spread
        root = math.sqrt(e)
        push = min(self.reach * root, self.energy + self.reach * math.sqrt(theta)) + beta * root
        return min(spread, 2 * push + dt * (self.reach + beta) ** 2)


def path(
    problem: Problem, weights: Weights, parts: Sequence[Part], clock: Clock
) -> tuple[list[State], FloatArray, FloatArray]:
    """Follow the bound (1b) at the times of a clock that lie in the first phases, those given as ``parts``.

    Returns
    -------
    list of State, ndarray, ndarray
        Zeroth-order states, the part of ``e`` in coordinates that have a drift, and the rest: outside the
        span of the inputs, and the gauge of the softmax loss. Each for the leading times within ``parts``.
    """
    flow = Flow(problem, weights)
    lost = problem.dim - flow.X.shape[1]
    times, current = len(clock.times), clock.phase()
    states: list[State] = []
    moving, rest = np.zeros(times), np.zeros(times)
    e, beyond = 0.0, 0.0
    if not parts:
        # before any step
        states = [flow.state()] * int((clock.spent[0] == 0).sum())
    for number, part in enumerate(parts):
        here = current == number
        outside = 2 * part.phase.sigma**2 * weights.width * lost if part.phase.method == "fft" else 0.0
        growth = _Growth(problem, part, part.noise_rate - outside)
        local, length = clock.spent[number][here], part.phase.time
        if clock.dt is None:
            local = np.minimum(local, length)
            found, square = flow.run(part.phase, local, e, growth.rate)
            # where it is below the integrator's absolute tolerance, the bound may come out negative
            square = np.maximum(square, 0.0)
        else:
            count = clock.lengths[number]
            length = count * clock.dt
            records = clock.steps[number][here]
            found, square = flow.steps(part.phase, clock.dt, records, count, e, growth.step(clock.dt))
        states += found
        moving[here] = square[:-1]
        e = square[-1]
        speed = outside + part.free_rate
        rest[here] = beyond + speed * local
        beyond += speed * length
    return states, moving[: len(states)], rest[: len(states)]
