"""Paths under way, and what is known of them so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from langevin.engine.kernels import types


@dataclass
class Chunk:
    """Consecutive paths, all at the same step."""

    first_path: int
    step: int
    thetas: np.ndarray  # (paths, size)
    complements: np.ndarray  # (paths, 2, processes) of what is not simulated, see `Reduction`

    @property
    def paths(self) -> slice:
        """The chunk's rows in the results."""
        return slice(self.first_path, self.first_path + len(self.thetas))


@dataclass
class Results:
    """Observables of an ensemble, NaN where not yet computed."""

    scalars: np.ndarray  # (paths, SCALARS, m), or more rows, see `Observer.scalars`
    neurons: np.ndarray  # (paths, 3, m, h), or (paths, 3, 0, 0)
    watched: dict[str, np.ndarray]  # each (paths, *sizes), by the dimensions of the observable
    diverged: np.ndarray  # (paths,): -1, or the step from which a path is not finite
    steps: np.ndarray  # (paths,): steps done

    @classmethod
    def empty(
        cls,
        paths: int,
        records: int,
        width: int,
        per_neuron: bool,
        watched: Mapping[str, tuple[int, ...]],
        scalars: int,
    ) -> Results:
        """Return results that are not yet known, with so many ``scalars`` and ``watched`` of these sizes."""
        neurons = (records, width) if per_neuron else (0, 0)
        return cls(
            np.full((paths, scalars, records), np.nan),
            np.full((paths, types.NEURON_ROWS, *neurons), np.nan),
            {name: np.full((paths, *sizes), np.nan) for name, sizes in watched.items()},
            np.full(paths, -1, np.int64),
            np.zeros(paths, np.int64),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them by name, as a checkpoint keeps them."""
        return {
            "scalars": self.scalars,
            "neurons": self.neurons,
            "diverged": self.diverged,
            "steps": self.steps,
            **{f"watched_{name}": values for name, values in self.watched.items()},
        }

    def mark_overflows(self, record_steps: np.ndarray) -> None:
        """Mark a path as diverged from its first record with an infinite number."""
        infinite: np.ndarray = np.isinf(self.scalars).max(axis=1)
        for path in np.flatnonzero(infinite.any(axis=1)):
            first = int(np.argmax(infinite[path]))
            step = int(record_steps[first])
            if self.diverged[path] < 0 or step < self.diverged[path]:
                self.diverged[path] = step
            self.scalars[path, :, first:] = np.nan
            self.neurons[path, :, first:] = np.nan
