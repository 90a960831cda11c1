"""Writes what is observed of states into results, for chains and flows alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.outputs.types import OutputsScratch
from langevin.engine.kernels.types import Records, Scratch
from langevin.engine.results import Chunk, Results
from langevin.engine.system import System
from langevin.engine.watchers import WATCHERS, Watcher
from langevin.model.observables import own_class
from langevin.support.validate import FloatArray

_NO_KEY = np.uint64(0), np.uint64(0)


@dataclass(frozen=True, eq=False)
class Observer:
    """What is observed of a system, and when.

    A flow hands its states to `observe`. The step loops of a chain write scalars and rows of neurons
    themselves, by the same ``records``, and leave the watchers to `watch`.

    Attributes
    ----------
    system : System
    times : ndarray, shape (m,)
        Times of the records.
    records : Records
        What the compiled code needs to write scalars and rows of neurons. Its ``steps`` are the steps of a
        chain that are recorded, and of a flow the numbers of the records.
    watchers : tuple of Watcher
        Observables of whole states.
    """

    system: System
    times: FloatArray
    records: Records
    watchers: tuple[Watcher, ...] = ()

    @classmethod
    def of(cls, system: System, observables: Sequence[str], times: FloatArray, steps: np.ndarray) -> Observer:
        """An observer of what is simulated; moves outside the span and distances come with a chain."""
        own, means, outside = _own_classes(system)
        dtype = system.layout.dtype
        records = Records(
            steps,
            system.origin,
            np.zeros((0, 0), dtype),
            own,
            means.astype(dtype),
            np.linalg.norm(means, axis=1),
            outside,
            complement_dims=np.zeros(0, np.int64),
            complement_scales=np.zeros((0, len(steps))),
        )
        watchers = (WATCHERS[name](system.reduction.problem) for name in observables if name in WATCHERS)
        return cls(system, times, records, tuple(watchers))

    def without_noise(self) -> Observer:
        """The same observer where nothing moves outside the span."""
        return self.with_hidden(np.zeros(0, np.int64), np.zeros((0, len(self.times))))

    def with_hidden(self, dims: np.ndarray, scales: FloatArray) -> Observer:
        """The same observer where what is not simulated moves, see `Records`."""
        records = self.records._replace(complement_dims=dims, complement_scales=scales)
        return replace(self, records=records)

    def with_reference(self, states: np.ndarray) -> Observer:
        """The same observer, recording the distance to ``states (m, size)``."""
        return replace(self, records=self.records._replace(reference=states))

    def empty(self, paths: int, per_neuron: bool) -> Results:
        """Return results that are not yet known."""
        watched = [watcher.name for watcher in self.watchers]
        return Results.empty(paths, len(self.times), self.system.layout.width, per_neuron, watched)

    def record_at(self, step: int) -> int | None:
        """The number of the record at a step, if there is one."""
        r = int(np.searchsorted(self.records.steps, step))
        return r if r < self.records.steps.size and self.records.steps[r] == step else None

    def observe(self, r: int, chunk: Chunk, results: Results, scratch: Scratch | OutputsScratch) -> None:
        """Write record ``r`` of a chunk's states as they are."""
        system, step, rows = self.system, int(self.records.steps[r]), chunk.paths
        system.reduction.loop(
            chunk.thetas,
            chunk.complements,
            results.diverged[rows],
            chunk.first_path,
            step,
            step,
            True,
            *_NO_KEY,
            system.data,
            # any phase's rule evaluates the outputs
            system.rule(system.schedule.phases[0]),
            scratch,
            self.records,
            results.scalars[rows],
            results.neurons[rows],
        )
        self.watch(r, chunk.first_path, chunk.thetas, results)

    def watch(self, r: int, first_path: int, states: Iterable[np.ndarray], results: Results) -> None:
        """Write what watchers see of states at record ``r``, unless their paths have diverged."""
        if not self.watchers:
            return
        system = self.system
        for path, theta in enumerate(states, first_path):
            if results.diverged[path] < 0:
                W, v = system.reduction.net(*system.layout.unpack(theta))
                # a path about to diverge says so by its outputs
                with np.errstate(over="ignore", invalid="ignore"):
                    for watcher in self.watchers:
                        results.watched[watcher.name][path, r] = watcher(W, v)

    def peak_bytes(self, paths: int, per_neuron: bool, threads: int, chunk: int) -> float:
        """Memory that a run of ``chunk`` paths at once on each thread holds at its peak."""
        layout, records = self.system.layout, len(self.times)
        rows = types.SCALARS + len(self.watchers)
        results = paths * records * 8 * (rows + types.NEURON_ROWS * layout.width * per_neuron)
        state = layout.size * np.dtype(layout.dtype).itemsize
        # and once more for the reference path, and for what it starts from
        in_flight = threads * chunk * state + (threads + 1) * self.system.scratch_bytes()
        return 1.2 * results + records * state + in_flight


def _own_classes(system: System) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Own class of each neuron, mean input of each class, and norms outside the span; or none of these."""
    problem, reduction, W = system.problem, system.reduction, system.weights.W
    means = np.zeros((2, reduction.W.shape[1]))
    if not (reduction.neurons and problem.classification):
        return np.zeros(0), means, np.zeros(0)
    X, y = reduction.problem.X, reduction.problem.y
    for row, label in enumerate((-1.0, 1.0)):
        if (y == label).any():
            means[row] = X[y == label].mean(axis=0)
    return own_class(problem, W), means, reduction.span.complement_norms(W)
