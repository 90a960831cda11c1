"""A run as it is kept: what it depends on, the labelled data set, and the checkpoint."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin import _kernels, store
from langevin._engine import Chain, Chunk, Results
from langevin.observables import OBSERVABLES
from langevin.problem import Problem, Weights
from langevin.schedule import Schedule

if TYPE_CHECKING:
    import xarray as xr

_SCALARS = {
    "loss": _kernels.LOSS,
    "accuracy": _kernels.ACCURACY,
    "displacement": _kernels.DISPLACEMENT,
    "squared_distance": _kernels.DISTANCE,
    "misaligned": _kernels.MISALIGNED,
    "distorted": _kernels.DISTORTED,
    "dead": _kernels.DEAD,
}
_NEURONS = {
    "alignment": _kernels.ALIGNMENT,
    "preactivation": _kernels.PREACTIVATION,
    "head_alignment": _kernels.HEAD_ALIGNMENT,
}


def per_neuron_wanted(names: Sequence[str]) -> bool:
    """Whether any of the observables has a neuron dimension."""
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
    problem: Problem, weights: Weights, schedule: Schedule, chain: Chain, names: Sequence[str], paths: int
) -> dict[str, Any]:
    """Everything that a run's numbers depend on, as plain data."""
    config = {
        "problem": {
            "samples": problem.samples,
            "dim": problem.dim,
            "activation": problem.activation,
            "loss": problem.loss,
            "digest": _digest(problem.X, problem.y, problem.X_test, problem.y_test),
        },
        "weights": {"width": weights.width, "digest": _digest(weights.W, weights.v)},
        "schedule": [asdict(phase) for phase in schedule],
        "dt": chain.grid.dt,
        "times": _digest(chain.grid.times),
        "paths": paths,
        "observables": list(names),
        "device": chain.place,
        "precision": "double" if chain.layout.dtype is np.float64 else "single",
        "reduction": chain.reduction.name,
        "simulated": chain.reduction.simulated,
        "coordinates": _digest(chain.reduction.problem.X, chain.reduction.W, chain.reduction.v),
        "key": list(chain.key),
        "draws": chain.draws,
    }
    return json.loads(json.dumps(config))


def versions(*extra: str) -> dict[str, str]:
    """Versions of what a run's numbers depend on, and of ``extra`` packages."""
    found = {"python": platform.python_version()}
    for name in ("private-finetuning-dynamics", "numba", "numpy", "scipy", "xarray", *extra):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def dataset(chain: Chain, results: Results, names: Sequence[str], config: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    variables: dict[str, Any] = {}
    for name in names:
        about = OBSERVABLES[name]
        attributes = {"long_name": about.meaning, "units": about.units}
        if name in _NEURONS:
            variables[name] = (("path", "time", "neuron"), results.neurons[:, _NEURONS[name]], attributes)
        elif name in _SCALARS:
            values = results.scalars[:, _SCALARS[name]]
            values = np.sqrt(values) if name == "displacement" else values
            variables[name] = (("path", "time"), values, attributes)
        else:
            # a watcher may have seen a path that was then found to have diverged at that very step
            lost = (results.diverged >= 0)[:, None] & (chain.grid.record_steps >= results.diverged[:, None])
            variables[name] = (("path", "time"), np.where(lost, np.nan, results.watched[name]), attributes)
    if any(name in _NEURONS for name in names):
        variables["own_class"] = (("neuron",), chain.records.own, {"long_name": "s_j", "units": "1"})
    return xr.Dataset(
        variables,
        {
            "path": np.arange(len(results.steps)),
            "time": ("time", chain.grid.times, {"long_name": "diffusion time", "units": "diffusion time"}),
        },
        {
            "title": "training dynamics of a two-layer network",
            "source": "langevin",
            "config": json.dumps(config),
            "versions": json.dumps(versions(*(() if config["device"] == "cpu" else ("torch", "triton")))),
        },
    )


def _arrays(results: Results) -> dict[str, np.ndarray]:
    watched = {f"watched_{name}": values for name, values in results.watched.items()}
    return {
        "scalars": results.scalars,
        "neurons": results.neurons,
        "diverged": results.diverged,
        "steps": results.steps,
        **watched,
    }


def save(path: Path, config: dict[str, Any], chain: Chain, results: Results, chunks: Sequence[Chunk]) -> None:
    layout, outside = chain.layout, chain.reduction.processes
    store.save_checkpoint(
        path,
        config,
        {
            **_arrays(results),
            "chunks": np.array([(c.first_path, c.step, len(c.thetas)) for c in chunks], np.int64).reshape(
                -1, 3
            ),
            "thetas": np.concatenate(
                [np.zeros((0, layout.size), layout.dtype), *(chain.states(c) for c in chunks)]
            ),
            "complements": np.concatenate([np.zeros((0, 2, outside)), *(c.complements for c in chunks)]),
        },
    )


def restore(path: Path, config: dict[str, Any], chain: Chain, results: Results) -> list[Chunk]:
    """Fill ``results`` from a checkpoint and return the chunks in flight."""
    own = _arrays(results)
    outside = chain.reduction.processes
    shapes = {name: array.shape for name, array in own.items()}
    shapes |= {"chunks": (-1, 3), "thetas": (-1, chain.layout.size), "complements": (-1, 2, outside)}
    arrays = store.load_checkpoint(path, config, shapes)
    for name, array in own.items():
        array[...] = arrays[name]
    chunks, row = [], 0
    for first_path, step, count in arrays["chunks"].tolist():
        chunk = chain.start(first_path, count)
        chunk.step = step
        chunk.thetas[:] = arrays["thetas"][row : row + count]
        chunk.complements[:] = arrays["complements"][row : row + count]
        row += count
        chunks.append(chunk)
    return chunks
