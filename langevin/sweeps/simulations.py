"""Sweeps of the simulator: each cell is a run of `langevin.euler_maruyama`, as by the command."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from langevin.data.files import is_file
from langevin.model.losses import LOSSES
from langevin.model.observables import OBSERVABLES
from langevin.model.steps import grid as step_grid
from langevin.simulation.config import Simulation
from langevin.support import validate
from langevin.sweeps.grid import Grid, Kind, Layout, Values, Variable
from langevin.sweeps.parameters import parameters

# what the times of a run depend on
_TIMING = ("time", "dt", "method", "schedule_file", "lp_share")


@dataclass(frozen=True)
class Recorded:
    """What is kept of each simulation.

    Parameters
    ----------
    variables : tuple of str
        Of `langevin.model.observables.OBSERVABLES`, but not those of each class.
    times : int
        Number of recorded times, equally spaced.
    paths : {"mean", "all"}
        Record the mean over the paths and its standard error, or each path.
    """

    variables: tuple[str, ...] = ("loss",)
    times: int = 11
    paths: Literal["mean", "all"] = "mean"

    def __post_init__(self) -> None:
        if not self.variables or len(set(self.variables)) < len(self.variables):
            raise ValueError(f"variables must be different ones, got {list(self.variables)}")
        for name in self.variables:
            validate.choice("variables", name, [n for n, o in OBSERVABLES.items() if "class" not in o.dims])
        validate.integer("times", self.times, 2)
        validate.choice("paths", self.paths, ("mean", "all"))


class Simulations(Kind):
    """Grids over the parameters of `langevin.simulation.config.Simulation`."""

    name = "simulate"
    # a dimension and a recorded variable cannot share a name
    parameters = parameters(Simulation, axes={"loss": "loss_function", "time": "total_time"})
    record = Recorded

    def check(self, values: Values, record: Recorded) -> None:
        """Refuse a combination of values."""
        simulation = Simulation(**values)
        if record.times > simulation.steps + 1:
            raise ValueError(
                f"times must be at most the number of steps plus 1, got {record.times} for "
                f"{simulation.steps} steps"
            )
        several = simulation.loss is not None and LOSSES[simulation.loss].classes
        for name in record.variables:
            about = OBSERVABLES[name]
            if instead := about.several if several else about.one_output:
                outputs = "one output" if several else "K outputs"
                raise ValueError(
                    f"variables: {name!r} needs {outputs}, got loss={simulation.loss!r}: take {instead!r}"
                )
            if about.classes and simulation.data == "teacher":
                raise ValueError(f"variables: {name!r} needs labels -1 and +1, which data='teacher' lacks")

    def idle(self, values: Values) -> Collection[str]:
        """Parameters without effect, given the values of the others."""
        return Simulation(**values).idle

    def layout(self, grid: Grid) -> Layout:
        """Observables over times, and over paths and neurons where these are kept."""
        record: Recorded = grid.record
        for dim, name in (("path", "paths"), ("neuron", "width")):
            wanted = (
                record.paths == "all"
                if dim == "path"
                else any(OBSERVABLES[variable].per_neuron for variable in record.variables)
            )
            if wanted and name in grid.sweep:
                raise ValueError(
                    f"cannot sweep {name!r}: each {dim} is recorded, so all cells need as many; "
                    "set it under [fixed]"
                )
        first = grid.values([0] * len(grid.sweep))
        times, dims = _times(grid)
        sizes = {"path": first["paths"], "neuron": first["width"], dims[-1]: record.times}
        variables = {}
        for name in record.variables:
            about = OBSERVABLES[name]
            within = (dims[-1], "neuron") if about.per_neuron else (dims[-1],)
            attrs = {"long_name": about.meaning, "units": about.units}
            if record.paths == "all":
                within = ("path", *within)
            shape = tuple(sizes[dim] for dim in within)
            variables[name] = Variable(within, shape, attrs)
            if record.paths == "mean":
                attrs = {"long_name": f"standard error of the mean {name}", "units": about.units}
                variables[f"{name}_standard_error"] = Variable(within, shape, attrs)
        attrs = {"long_name": "diffusion time", "units": "diffusion time"}
        return Layout(variables, {"time": (dims, times, attrs)})

    def memory(self, values: Values, record: Recorded) -> float:
        """Bytes of the results."""
        per_path = record.times * 8.0 * (7 + len(record.variables))
        if any(OBSERVABLES[name].per_neuron for name in record.variables):
            per_path += 3 * 8.0 * record.times * values["width"]
        return values["paths"] * per_path

    def files(self, values: Values) -> list[str]:
        """The files of data and schedule, if there are any."""
        data = [values["data"]] if is_file(values["data"]) else []
        return data if values["schedule_file"] is None else [*data, values["schedule_file"]]

    def located(self, values: Values, out: Path) -> Values:
        """The same with absolute paths to the files."""
        here = {file: str(Path(file).resolve()) for file in self.files(values)}
        named = ("data", "schedule_file")
        return values | {name: here[values[name]] for name in named if values[name] in here}

    def compute(self, values: Values, record: Recorded) -> tuple[dict[str, np.ndarray], str | None]:
        """Simulate; keep a diverged run up to its last finite step."""
        from langevin.solvers.diffusion import euler_maruyama
        from langevin.solvers.errors import Diverged

        simulation, error = Simulation(**values), None
        problem, weights, *_ = simulation.start(record.variables)
        schedule = simulation.schedule
        try:
            run = euler_maruyama(
                problem,
                weights,
                schedule,
                dt=simulation.dt,
                paths=simulation.paths,
                rng=simulation.seed,
                times=schedule.default_times(record.times),
                observables=record.variables,
                precision=simulation.precision,
                reduce=simulation.reduce,
                threads=1,
                device=simulation.device,
            )
        except Diverged as diverged:
            run, error = diverged.run, str(diverged)
        found = {}
        for name in record.variables:
            each = run[name].values
            if record.paths == "all":
                found[name] = each
                continue
            # a diverged run is not finite, which its error reports
            with np.errstate(invalid="ignore", over="ignore"):
                found[name] = each.mean(axis=0)
                several = len(each) > 1
                spread = each.std(axis=0, ddof=1) if several else np.full(each.shape[1:], np.nan)
            found[f"{name}_standard_error"] = spread / len(each) ** 0.5
        return found, error


def _times(grid: Grid) -> tuple[np.ndarray, tuple[str, ...]]:
    """Recorded times and their dimensions: ``time`` alone where all cells have the same times."""
    swept = [name for name in grid.sweep if name in _TIMING]
    rows = []
    lengths = math.prod(len(grid.sweep[name]) for name in swept)
    validate.memory(16.0 * lengths * grid.record.times, "the times of a sweep", "record fewer of them")
    for values in grid.combinations(swept):
        simulation = Simulation(**values)
        schedule = simulation.schedule
        rows.append(step_grid(schedule, simulation.dt, schedule.default_times(grid.record.times)).times)
    if all(np.allclose(row, rows[0], rtol=1e-9, atol=0) for row in rows):
        return rows[0], ("time",)
    shape = [len(grid.sweep[name]) for name in swept]
    dims = [grid.kind.parameters[name].axis for name in swept]
    return np.reshape(rows, (*shape, -1)), (*dims, "record")


SIMULATIONS = Simulations()
