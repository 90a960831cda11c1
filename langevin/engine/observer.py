"""Writes what is observed of states into results, for chains and flows alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.outputs import types as outputs_types
from langevin.engine.kernels.outputs.types import OutputsScratch
from langevin.engine.kernels.types import Records, Scratch
from langevin.engine.results import Chunk, Results
from langevin.engine.system import System
from langevin.engine.watchers import WATCHERS, Watcher
from langevin.model.alignment import own_class
from langevin.model.observables import OBSERVABLES
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

    @property
    def scalars(self) -> int:
        """Number of scalar observables that the step loop writes."""
        return types.SCALARS if self.system.reduction.scalar else outputs_types.SCALARS

    @property
    def watched_steps(self) -> np.ndarray:
        """Steps of the records at which a watcher looks at the states."""
        if any(OBSERVABLES[watcher.name].over_time for watcher in self.watchers):
            return self.records.steps
        return self.records.steps[-1:] if self.watchers else self.records.steps[:0]

    def _watched_sizes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of what each watcher sees of a path."""
        classes = len(self.system.problem.labels)
        sizes = {"time": len(self.times), "class": classes, "predicted": classes}
        return {w.name: tuple(sizes[dim] for dim in OBSERVABLES[w.name].dims) for w in self.watchers}

    def empty(self, paths: int, per_neuron: bool) -> Results:
        """Return results that are not yet known."""
        records, width = len(self.times), self.system.layout.width
        return Results.empty(paths, records, width, per_neuron, self._watched_sizes(), self.scalars)

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
        watchers, system = self._watching(r), self.system
        if not watchers:
            return
        for path, theta in enumerate(states, first_path):
            if results.diverged[path] < 0:
                W, v = system.reduction.net(*system.layout.unpack(theta))
                # a path about to diverge says so by its outputs
                with np.errstate(over="ignore", invalid="ignore"):
                    for watcher in watchers:
                        at = (path, r) if OBSERVABLES[watcher.name].over_time else path
                        results.watched[watcher.name][at] = watcher(W, v)

    def _watching(self, r: int) -> list[Watcher]:
        """The watchers that look at the states of record ``r``."""
        last = r == len(self.times) - 1
        return [w for w in self.watchers if last or OBSERVABLES[w.name].over_time]

    def peak_bytes(self, paths: int, per_neuron: bool, threads: int, chunk: int) -> float:
        """Memory that a run of ``chunk`` paths at once on each thread holds at its peak."""
        layout, records = self.system.layout, len(self.times)
        rows = self.scalars + types.NEURON_ROWS * layout.width * per_neuron
        results = paths * 8 * (records * rows + sum(map(math.prod, self._watched_sizes().values())))
        state = layout.size * np.dtype(layout.dtype).itemsize
        # and once more for the reference path, and for what it starts from
        in_flight = threads * chunk * state + (threads + 1) * self.system.scratch_bytes()
        return 1.2 * results + records * state + in_flight


def _own_classes(system: System) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Own class of each neuron, mean input of each class, and norms outside the span; or none of these."""
    problem, reduction, W = system.problem, system.reduction, system.weights.W
    X, y, labels = reduction.problem.X, reduction.problem.y, list(problem.labels.values())
    means = np.zeros((len(labels), X.shape[1]))
    if not (reduction.neurons and labels):
        return np.zeros(0), means, np.zeros(0)
    for mean, label in zip(means, labels, strict=True):
        if (y == label).any():
            mean[:] = X[y == label].mean(axis=0)
    return own_class(problem, W).astype(np.float64), means, reduction.span.complement_norms(W)
