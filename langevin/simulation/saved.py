"""What is saved with a run, so that its report and figure can be made again from the file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.simulation.facts import Curve, Subject
from langevin.support.plots import method_of

if TYPE_CHECKING:
    import xarray as xr

# of the methods of a comparison; "method" is an argument of xarray's selection
DIM = "strategy"
_ENCLOSED = {"zeroth_loss": "the zeroth-order loss", "expected_loss": "the expected loss of the diffusion"}


def complete(subject: Subject, report: Mapping[str, Any]) -> xr.Dataset:
    """Return the run with its phases, the zeroth-order path, the bounds, the privacy spent and its report.

    The names of what is added:

    - ``phase``, a coordinate: the method that trains up to each time;
    - ``zeroth_<name>``: the observables of the zeroth-order path on the same times;
    - ``squared_distance_upper`` over ``(statement, time)``: bounds on the expected squared distance, with the
      reason why each of them ends in ``squared_distance_reason``;
    - ``zeroth_loss_lower``, ``zeroth_loss_upper``, ``expected_loss_lower``, ``expected_loss_upper``: the
      enclosures of the losses; their ``reason`` says why they end;
    - ``epsilon``: of the whole run, with ``delta`` and ``accountant``;
    - the attribute ``report``: the report of the command, as JSON.
    """
    run = subject.run.assign_coords(phase=("time", phases(subject)))
    run.phase.attrs["long_name"] = "what trains up to this time"
    for name, values in subject.zeroth.data_vars.items():
        words = f"{values.attrs.get('long_name', name)}, along the zeroth-order path"
        run[f"zeroth_{name}"] = (values.dims, values.values, values.attrs | {"long_name": words})
    if subject.theory is not None:
        run = _with_bounds(run, subject)
    privacy = subject.privacy or {}
    if privacy.get("epsilon") is not None:
        about = {"long_name": "epsilon of differential privacy of the whole run", "units": "1"}
        about |= {name: privacy[name] for name in ("delta", "accountant")}
        run["epsilon"] = ((), float(privacy["epsilon"]), about)
    run.attrs["report"] = json.dumps(report)
    return run


def phases(subject: Subject) -> list[str]:
    """Return the method that trains up to each time; at a change of phases, that of the earlier phase."""
    times, starts = subject.run.time.values, subject.schedule.starts
    # times are whole steps, and differ from the start of a phase by rounding alone
    places = np.searchsorted(starts + 1e-9 * subject.schedule.duration, times, side="left") - 1
    return [subject.schedule.phases[max(place, 0)].method for place in places]


def _with_bounds(run: xr.Dataset, subject: Subject) -> xr.Dataset:
    theory, units = subject.theory, {"units": "parameter^2"}
    assert theory is not None
    names, bands = list(theory.distance), list(theory.distance.values())
    run = run.assign_coords(statement=names)
    about = {"long_name": "upper bound on E ||theta_t - theta~_t||^2, NaN where it does not hold"} | units
    run["squared_distance_upper"] = (("statement", "time"), np.array([b.upper for b in bands]), about)
    reasons = {"long_name": "why the bound does not hold everywhere"}
    run["squared_distance_reason"] = ("statement", np.array([b.reason for b in bands], dtype=str), reasons)
    enclosed: dict[str, Curve] = {"zeroth_loss": theory.zeroth_loss, "expected_loss": theory.expected_loss}
    for name, band in enclosed.items():
        for side, values in (("lower", band.lower), ("upper", band.upper)):
            words = f"{side} bound on {_ENCLOSED[name]}, NaN where it does not hold"
            about = {"long_name": words, "units": "loss", "reason": band.reason}
            run[f"{name}_{side}"] = ("time", np.array(values), about)
    return run


def join(runs: Mapping[str, xr.Dataset], report: Mapping[str, Any]) -> xr.Dataset:
    """Return one data set of the completed runs of several methods, with a dimension ``strategy``.

    What a method does not record is NaN there. The configurations are kept by method, as JSON; ``report`` is
    that of the comparison.
    """
    import xarray as xr

    first = next(iter(runs.values()))
    # the same steps, whose times may differ by rounding
    aligned = [run.assign_coords(time=first.time, phase=("time", run.phase.values)) for run in runs.values()]
    joined = xr.concat(
        [run.reset_coords("phase") for run in aligned],
        xr.DataArray(list(runs), dims=DIM, name=DIM),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="override",
    ).set_coords("phase")
    configs = {method: json.loads(run.attrs["config"]) for method, run in runs.items()}
    return joined.assign_attrs(config=json.dumps(configs), report=json.dumps(report))


def split(run: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the run of each method of a comparison; otherwise the run, by the name of its method."""
    if DIM not in run.dims:
        return {method_of(phase["method"] for phase in _schedule(run)): run}
    found = {}
    for method in map(str, run[DIM].values):
        own = run.sel({DIM: method}, drop=True)
        # what this method did not record
        kept = [name for name, values in own.data_vars.items() if bool(values.notnull().any())]
        found[method] = own[kept].assign_attrs(config=json.dumps(json.loads(run.attrs["config"])[method]))
    return found


def _schedule(run: xr.Dataset) -> list[dict[str, Any]]:
    """Return the phases of a run as plain data, if it says."""
    try:
        return json.loads(run.attrs["config"])["schedule"]
    except (KeyError, ValueError, TypeError):
        return []


def describe(run: xr.Dataset) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the phases and the problem of the run of one method, as plain data; empty where unknown."""
    try:
        problem = json.loads(run.attrs["config"])["problem"]
    except (KeyError, ValueError, TypeError):
        problem = {}
    return _schedule(run), problem
