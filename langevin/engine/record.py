"""The record of a run: what it depends on, the labelled data set, and the checkpoint."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.engine.chain import Chain
from langevin.engine.kernels import types
from langevin.engine.kernels.outputs import types as outputs_types
from langevin.engine.observer import Observer
from langevin.engine.results import Chunk, Results
from langevin.model.observables import OBSERVABLES
from langevin.model.schedule import Phase
from langevin.store import checkpoints, errors
from langevin.support import validate

if TYPE_CHECKING:
    import xarray as xr

_SCALARS = {
    "loss": types.LOSS,
    "accuracy": types.ACCURACY,
    "displacement": types.DISPLACEMENT,
    "squared_distance": types.DISTANCE,
    "misaligned": types.MISALIGNED,
    "distorted": types.DISTORTED,
    "dead": types.DEAD,
    "wholly_misaligned": outputs_types.WHOLLY_MISALIGNED,
}
_NEURONS = {
    "alignment": types.ALIGNMENT,
    "preactivation": types.PREACTIVATION,
    "head_alignment": types.HEAD_ALIGNMENT,
    "cone_distance": types.HEAD_ALIGNMENT,
}
# dimensions whose coordinate are the names of classes
_OF_CLASSES = ("class", "predicted")


def per_neuron_wanted(names: Sequence[str]) -> bool:
    """Tell whether any of the observables has a neuron dimension."""
    return any(name in _NEURONS for name in names)


def _digest(*arrays: np.ndarray | None) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(b"none" if array is None else repr(array.shape).encode())
        if array is not None:
            # no copy: it may be a memory map
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def configuration(
    observer: Observer, names: Sequence[str], paths: int = 1, chain: Chain | None = None
) -> dict[str, Any]:
    """Everything that the numbers of a chain, or of a flow, depend on, as plain data."""
    system, problem, weights = observer.system, observer.system.problem, observer.system.weights
    reduction = system.reduction
    config = {
        "problem": {
            "samples": problem.samples,
            "dim": problem.dim,
            "activation": problem.activation,
            "loss": problem.loss,
            "digest": _digest(problem.X, problem.y, problem.X_test, problem.y_test),
            **({"classes": problem.class_names} if problem.class_names else {}),
        },
        "weights": {"width": weights.width, "digest": _digest(weights.W, weights.v)},
        "schedule": [_phase(phase) for phase in system.schedule],
        "dt": chain.grid.dt if chain else None,
        "times": _digest(observer.times),
        "paths": paths,
        "observables": list(names),
        "device": chain.place if chain else "cpu",
        "precision": "double" if system.layout.dtype is np.float64 else "single",
        "reduction": reduction.name,
        "simulated": reduction.simulated,
        "coordinates": _digest(reduction.problem.X, reduction.W, reduction.v),
        "key": list(chain.key) if chain else [0, 0],
        "draws": chain.draws if chain else 1,
    }
    return json.loads(json.dumps(config))


def _phase(phase: Phase) -> dict[str, Any]:
    """A phase as plain data; without the sample rate of full batches, which earlier checkpoints lack."""
    found = asdict(phase)
    if phase.sample_rate == 1:
        del found["sample_rate"]
    return found


def versions(*extra: str) -> dict[str, str]:
    """Return the versions of the packages that a run depends on, and of ``extra`` packages."""
    names = ("private-finetuning-dynamics", "numba", "numpy", "scipy", "xarray", *extra)
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


# reading it takes milliseconds, and a process has loaded one version
@functools.cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, eq=False)
class Run:
    """A run under way: what is observed, what is known so far, and what its numbers depend on."""

    observer: Observer
    names: tuple[str, ...]
    results: Results
    config: dict[str, Any]

    @classmethod
    def start(
        cls, observer: Observer, names: tuple[str, ...], paths: int = 1, chain: Chain | None = None
    ) -> Run:
        """Begin a run of a chain, or of a flow, of which nothing is known yet."""
        results = observer.empty(paths, per_neuron_wanted(names))
        return cls(observer, names, results, configuration(observer, names, paths, chain))

    def finished(self, **solver: Any) -> xr.Dataset:
        """The whole run: a path whose numbers become infinite counts as diverged."""
        self.results.mark_overflows(self.observer.records.steps)
        return self.dataset(**solver)

    def dataset(self, **solver: Any) -> xr.Dataset:
        """What is known, with units and the full record; ``solver`` adds to the configuration."""
        import xarray as xr

        config = {**self.config, **solver}
        variables = {name: self._variable(name) for name in self.names}
        labels = list(self.observer.system.problem.labels)
        dims = {dim for found, *_ in variables.values() for dim in found}
        times = self.observer.times
        return xr.Dataset(
            variables,
            {
                "path": np.arange(len(self.results.steps)),
                "time": ("time", times, {"long_name": "diffusion time", "units": "diffusion time"}),
                **({"own_class": ("neuron", self._own_classes())} if "neuron" in dims else {}),
                **{dim: labels for dim in _OF_CLASSES if dim in dims},
            },
            {
                "title": "training dynamics of a two-layer network",
                "source": "langevin",
                "config": json.dumps(config),
                **({"classes": json.dumps(names)} if (names := config["problem"].get("classes")) else {}),
                "versions": json.dumps(versions(*(() if config["device"] == "cpu" else ("torch", "triton")))),
            },
        )

    def _variable(self, name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        """Dimensions, values and attributes of an observable."""
        results, about = self.results, OBSERVABLES[name]
        attributes = {"long_name": about.meaning, "units": about.units}
        if name in _NEURONS:
            values = results.neurons[:, _NEURONS[name]]
            if name == "cone_distance" and self.observer.system.problem.outputs_dim == 1:
                values = np.maximum(-values, 0.0)
        elif name in _SCALARS:
            values = results.scalars[:, _SCALARS[name]]
            values = np.sqrt(values) if name == "displacement" else values
        else:
            values = self._watched(name)
        return ("path", *about.dims), values, attributes

    def _watched(self, name: str) -> np.ndarray:
        """What a watcher saw, less paths that were then found to have diverged at that very step."""
        values, diverged = self.results.watched[name], self.results.diverged[:, None]
        lost = (diverged >= 0) & (self.observer.records.steps >= diverged)
        lost = lost if OBSERVABLES[name].over_time else lost[:, -1]
        return np.where(lost.reshape(lost.shape + (1,) * (values.ndim - lost.ndim)), np.nan, values)

    def _own_classes(self) -> np.ndarray:
        """Own class of each neuron: -1 or +1, or the name of a class."""
        own, names = self.observer.records.own, self.observer.system.problem.class_names
        return np.array(names)[own.astype(np.int64)] if names else own


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The file that keeps an unfinished run of a chain; without a path, nothing is kept."""

    path: Path | None
    chain: Chain
    run: Run

    @classmethod
    def of(cls, path: str | Path | None, chain: Chain, run: Run) -> Checkpoint:
        """A checkpoint in an existing folder."""
        saved = None if path is None else validate.path("checkpoint", path)
        if saved is not None and not saved.parent.is_dir():
            raise ValueError(f"checkpoint must lie in an existing folder, got {str(saved)!r}")
        return cls(saved, chain, run)

    def save(self, chunks: Sequence[Chunk]) -> str:
        """Write the results and the chunks in flight, and return why that failed, or nothing."""
        if self.path is None:
            return ""
        layout, processes = self.chain.layout, self.chain.reduction.processes
        flying = [(c.first_path, c.step, len(c.thetas)) for c in chunks]
        states = (self.chain.states(c) for c in chunks)
        arrays = {
            **self.run.results.arrays(),
            "chunks": np.array(flying, np.int64).reshape(-1, 3),
            "thetas": np.concatenate([np.zeros((0, layout.size), layout.dtype), *states]),
            "complements": np.concatenate([np.zeros((0, 2, processes)), *(c.complements for c in chunks)]),
        }
        try:
            checkpoints.save_checkpoint(self.path, self.run.config, arrays)
        except errors.StoreError as error:
            return str(error)
        return ""

    def autosave(self, chunks: Sequence[Chunk]) -> None:
        """Write them, and warn where that fails."""
        if failure := self.save(chunks):
            warnings.warn(f"{failure}; the run goes on", stacklevel=2)

    def restore(self) -> list[Chunk]:
        """Fill the results from the file, if there is one, and return the chunks in flight."""
        if self.path is None or not self.path.exists():
            return []
        own, processes = self.run.results.arrays(), self.chain.reduction.processes
        shapes = {name: array.shape for name, array in own.items()}
        shapes |= {"chunks": (-1, 3), "thetas": (-1, self.chain.layout.size)}
        arrays = checkpoints.load_checkpoint(
            self.path, self.run.config, {**shapes, "complements": (-1, 2, processes)}
        )
        for name, array in own.items():
            array[...] = arrays[name]
        chunks, row = [], 0
        for first_path, step, count in arrays["chunks"].tolist():
            chunk = self.chain.start(first_path, count)
            chunk.step = step
            chunk.thetas[:] = arrays["thetas"][row : row + count]
            chunk.complements[:] = arrays["complements"][row : row + count]
            row += count
            chunks.append(chunk)
        return chunks

    def remove(self) -> None:
        """Delete the file of a run that has ended."""
        if self.path is not None:
            checkpoints.remove_checkpoint(self.path)
