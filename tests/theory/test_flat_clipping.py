"""Flat clipping of softmax on Poisson batches: without ``Lambda`` the bound of linear probing is broken.

One sample is where its drift is not monotone. The gradients of 32 short samples cancel, but their sampling
moves the head along the direction in which two heads move apart.
"""

from typing import Any

import numpy as np

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference

COPIES, SHORT, TILT, STEPS = 16, 0.05, 0.15, 62


def instance():
    """Problem, weights, clip and step, in which all samples with features stay clipped."""
    first = np.log([0.05, 0.80, 0.15])
    # the others' softmax (.665, .335) points along the lowest eigenvector of the first sample's Jacobian
    second = np.log([0.3, 0.7 * 0.665, 0.7 * 0.335])
    features = SHORT * np.array([[1.0, TILT, 0.0], [-1.0, 0.0, TILT]])
    X = np.concatenate([[[1.0, 0.0, 0.0]], np.repeat(features, COPIES, 0), np.zeros((2, 3))])
    V = np.array([first, (second / SHORT - first) / TILT, (second / SHORT + first) / TILT])
    # all of class 0; the other classes have a sample without features
    problem = Problem(X, [0] * (1 + 2 * COPIES) + [1, 2], "linear", "softmax")
    weights = Weights(np.eye(3), V)
    clip = 0.9 * float(problem.gradient_norms(weights, "lp")[: 1 + 2 * COPIES].min())
    return problem, weights, clip, 0.06 / clip


class Drift:
    """The clipped drift of one phase, of many heads at once."""

    def __init__(self, clipping: Any = "flat") -> None:
        self.problem, self.weights, clip, self.dt = instance()
        self.phase = Phase("lp", 1.0, clip=clip, clipping=clipping)

    def __call__(self, heads, batch: Any = 1.0):
        W = np.broadcast_to(self.weights.W, (len(heads), *self.weights.W.shape))
        return reference.drift_outputs(self.problem, W, heads, self.phase, batch)[1]

    def gradients(self, V):
        """Minus the clipped gradient of each sample at one head, shape (n, h K)."""
        n = self.problem.samples
        return self(np.repeat(V[None], n, 0), np.eye(n)).reshape(n, -1)


def test_to_first_order_in_the_noise():
    most = {}
    for clipping in ("flat", "margin"):
        drift = Drift(clipping)
        V, dt = drift.weights.v, drift.dt
        bumps = 1e-5 * np.eye(V.size).reshape(-1, *V.shape)
        covariance, spent, found = np.zeros((V.size, V.size)), 0.0, []
        for _ in range(STEPS):
            slope = (drift(V + bumps) - drift(V - bumps)).reshape(V.size, -1).T / 2e-5
            step, gradients = np.eye(V.size) + dt * slope, drift.gradients(V)
            covariance = step @ covariance @ step.T + dt**2 * gradients.T @ gradients
            spent += dt**2 * float((gradients**2).sum())
            V = V + dt * drift(V[None])[0]
            found.append(np.trace(covariance) / spent)
        most[clipping] = max(found)
    assert most["flat"] > 1.02
    # where the drift is monotone, noise is never amplified
    assert most["margin"] <= 1 + 1e-9


def test_of_the_chain():
    drift, q, paths = Drift(), 0.9995, 4000
    rng = np.random.default_rng(0)
    V, still, dt = np.repeat(drift.weights.v[None], paths, 0), drift.weights.v, drift.dt
    walk, noise = np.zeros((paths, still.size)), 0.0
    for _ in range(STEPS):
        batch = (rng.random((paths, drift.problem.samples)) < q) / q
        gradients = drift.gradients(still)
        walk = walk + dt * (batch - 1) @ gradients
        noise += dt**2 * (1 - q) / q * float((gradients**2).sum())
        V, still = V + dt * drift(V, batch), still + dt * drift(still[None])[0]
    # the expected squared norm of the walk is the noise, exactly: the difference is all that varies
    excess = ((V - still) ** 2).sum((1, 2)) - (walk**2).sum(1)
    mean, error = noise + excess.mean(), excess.std(ddof=1) / np.sqrt(paths)
    schedule = Schedule.lp(time=STEPS * dt, clip=drift.phase.clip, sample_rate=q)
    band = bounds.approximation_error(
        drift.problem, drift.weights, schedule, [STEPS * dt], kind="monotone", dt=dt
    )
    assert mean <= band.upper + 4 * error
    # the bound with Lambda = 0
    assert mean > noise + 4 * error
