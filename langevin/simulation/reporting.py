"""Options of a simulation that do not affect its results: what is recorded, reported and saved."""

from __future__ import annotations

from dataclasses import dataclass, field

from langevin.model.schedule import RECORDS
from langevin.simulation.config import Method


@dataclass(frozen=True)
class Reporting:
    """Options of ``python -m langevin.simulate`` besides those of `Simulation`.

    Parameters
    ----------
    threads : int or None
        Number of threads (default: all processors).
    times : int
        Recorded times, at most one per step.
    observables : tuple of str
        Observables to record besides the default ones: alignment preactivation head_alignment cone_distance
        wholly_misaligned test_accuracy knn_accuracy class_accuracy test_class_accuracy confusion
        test_confusion; misaligned distorted dead where the reduction leaves them out.
    out : str or None
        file.nc or folder.zarr (default: runs/<what was asked for>.nc).
    plot : str or None
        Draw loss, distance and neurons (default: next to the run).
    bounds : bool
        Report what the theorems say of the run: bands, privacy, the state of their assumptions.
    compare : tuple of {"lp", "fft", "lp-fft"}
        Methods to run next to each other from the same start, with the same noise and time: one table, figure
        and saved run; in place of method.
    epsilon : float or None
        Budget to calibrate sigma to, at ``delta``; in place of sigma.
    delta : float
        Delta at which to report epsilon.
    json : bool
        Print the report as JSON.
    quiet : bool
        Show no progress bar; suppress messages on stderr.
    resume : bool
        Resume an interrupted run, to the same bits.
    """

    threads: int | None = None
    times: int = RECORDS
    observables: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    out: str | None = None
    plot: str | None = field(default=None, metadata={"metavar": "FILE", "nargs": "?", "const": ""})
    bounds: bool = True
    compare: tuple[Method, ...] = ()
    epsilon: float | None = None
    delta: float = 1e-5
    json: bool = False
    quiet: bool = False
    resume: bool = False
