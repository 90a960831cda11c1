"""Of the shares that plans call as good as their best, how many were.

A share was as good if its measured mean over the seeds is at most {near:g} (or {twice:g}) below the best mean
of its task and budget. "Called" is the fraction of the five shares that plans call as good. Optimism is the
accuracy that the report expects of its share, less the measured mean of the same share: mean over plans, and
median of its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

_NEAR = (regret.NEAR, 2 * regret.NEAR)


def compute(quick: bool = False) -> xr.Dataset:
    """Compute fractions by group of tasks, source and what counts as good."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned()
    rows = []
    for name, tasks in regret.GROUPS.items():
        measured, planned = found.sel(task=list(tasks)), plans.sel(task=list(tasks))
        parts = [regret.called(measured, planned, near) for near in _NEAR]
        row = xr.concat(parts, "near").assign_coords(near=list(_NEAR))
        over = regret.expected(measured, planned)
        rest = [dim for dim in over.dims if dim != "source"]
        row["optimism"], row["off_by"] = over.mean(rest), abs(over).median(rest)
        rows.append(row.expand_dims(group=[name]))
    data: Any = xr.concat(rows, "group")
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"calibration: {name}", "units": "1"}
    data.attrs["machine"] = f"plans on {plans.attrs['machine']}; study on a processor"
    return data


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and source."""
    from empirical.studies.tables import Table

    rows = []
    for group in data.group.values:
        first = str(group)
        for source in data.source.values:
            part = data.sel(group=group, source=source)
            if part.optimism.isnull():
                continue
            percent = [f"{float(part.share.isel(near=0)):.0%}"]
            percent += [
                f"{float(part[name].sel(near=n)):.0%}" for n in _NEAR for name in ("called", "others")
            ]
            rows.append(
                [first, str(source), *percent, f"{float(part.optimism):+.3f}", f"{float(part.off_by):.3f}"]
            )
            first = ""
    within = [f"{kind} within {near:g}" for near in _NEAR for kind in ("called,", "others,")]
    return Table(["calibration", "plan from", "called", *within, "optimism", "its size"], rows, labels=2)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    near, twice = map(float, data.near)
    return {"near": near, "twice": twice}


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, caption=caption, argv=argv)


if __name__ == "__main__":
    streams.run(main)
