"""What takes a run further: the command, the Python, and the saved run."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from explorer.views import observables
from langevin.data import files
from langevin.model.problem import Problem
from langevin.simulation.config import Simulation
from langevin.support import options

MODULE = "langevin.simulate"


def arguments(simulation: Simulation) -> list[str]:
    """Return the options of ``python -m langevin.simulate`` that differ from their defaults."""
    default, words = Simulation(), []
    for field in fields(Simulation):
        value = getattr(simulation, field.name)
        if value == getattr(default, field.name) or field.name in simulation.idle:
            continue
        parts = value if isinstance(value, tuple) else (value,)
        words += [options.flag(field.name), *("none" if part is None else _number(part) for part in parts)]
    return words


def _number(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def command(simulation: Simulation) -> str:
    """Return the command that simulates the same paths, saves and draws them.

    Examples
    --------
    >>> command(Simulation(data="digits", classes=(4, 9), clip=None))
    'python -m langevin.simulate --data digits --classes 4 9 --clip none --plot'
    """
    return shlex.join(["python", "-m", MODULE, *arguments(simulation), "--plot"])


def save(simulation: Simulation) -> bytes:
    """Run the command without its figure, and return the netCDF file that it writes.

    Raises
    ------
    OSError
        If it fails, with what it said.
    """
    asked = observables(simulation.start().problem)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run.nc")
        given = [*arguments(simulation), "--observables", *asked, "--out", str(out), "--json", "--quiet"]
        done = subprocess.run([sys.executable, "-m", MODULE, *given], capture_output=True, text=True)
        if not out.exists():
            raise OSError(f"the run was not saved: {done.stderr.strip() or f'exit status {done.returncode}'}")
        return out.read_bytes()


def python(simulation: Simulation, problem: Problem) -> str:
    """Return Python that simulates the same paths of a problem with the names of `langevin` and `bounds`."""
    data, names = _data(simulation)
    weights, more = _weights(simulation)
    # beyond what every run imports
    names = sorted({"Phase", "Schedule", "Weights", "euler_maruyama", "zeroth_order", *names, *more})
    asked = observables(problem)
    # of Poisson batches the bound is of the chain
    chain = f", dt={simulation.dt!r}" if simulation.sample_rate < 1 else ""
    phases = "".join(f"        {phase!r},\n" for phase in simulation.schedule)
    return (
        f"import bounds\nfrom langevin import {', '.join(names)}\n\n"
        f"{data}{weights}"
        f"schedule = Schedule(\n    [\n{phases}    ]\n)\n"
        f"run = euler_maruyama(\n    problem,\n    weights,\n    schedule,\n    dt={simulation.dt!r},\n"
        f"    paths={simulation.paths},\n    rng={simulation.seed},\n    reduce='span',\n"
        f"    observables={list(asked)!r},\n)\n"
        "flow = zeroth_order(problem, weights, schedule, times=run.time)\n"
        "distance = bounds.approximation_error(problem, weights, schedule, run.time"
        f"{chain})\n"
        f"print(run.loss.mean('path')[-1].item(), flow.loss[-1].item(), distance.upper[-1])\n"
    )


def _data(simulation: Simulation) -> tuple[str, set[str]]:
    """Return the lines that make the problem, and the names that they take."""
    seed, loss = simulation.seed, simulation.loss or "logistic"
    if simulation.is_file:
        lines = f"found = from_file({simulation.data!r}, loss={loss!r})\nproblem = found.problem\n"
        return lines, {"from_file"}
    if simulation.data == "digits":
        call = f"digits({simulation.classes!r}, {simulation.width}, loss={loss!r}, rng={seed})"
        return f"problem, pretrained = {call}\n", {"digits"}
    rest = f"loss={loss!r}, spread={simulation.spread!r}, test_samples={simulation.samples}, rng={seed}"
    if simulation.data == "ring":
        call = f"class_ring({simulation.samples}, {simulation.classes[0]}, {rest})"
        return f"problem = {call}\n", {"class_ring"}
    call = f"orthogonally_separable({simulation.samples}, {simulation.dim}, {rest})"
    return f"problem = {call}\n", {"orthogonally_separable"}


def _weights(simulation: Simulation) -> tuple[str, set[str]]:
    """Return the lines that make the weights, and the names that they take."""
    names, width, seed = set(), simulation.width, f"rng={simulation.seed}"
    held = files.held(simulation.data) if simulation.is_file else ()
    collapsed = simulation.features == "collapsed" or simulation.data == "separable"
    if simulation.data == "digits":
        lines = "W = pretrained.W\n"
    elif "W" in held:
        lines = "W = found.W\n"
    elif collapsed and not simulation.is_file:
        lines, names = f"W = collapsed_features(problem, {width}, {seed}).W\n", {"collapsed_features"}
    else:
        count = "len(found.v)" if "v" in held else f"{width}"
        lines, names = f"W = gaussian_features({count}, problem.dim, {seed})\n", {"gaussian_features"}
    if "v" in held:
        return f"{lines}weights = Weights(W, found.v)\n", names
    head = {
        "gaussian": f"gaussian_head(len(W), {simulation.head_scale!r}, outputs=problem.outputs_dim, {seed})",
        "zero": "zero_head(len(W), outputs=problem.outputs_dim)",
        "prototype": f"prototype_head(problem, W, {simulation.head_scale!r})",
    }[simulation.head]
    return f"{lines}weights = Weights(W, {head})\n", names | {f"{simulation.head}_head"}
