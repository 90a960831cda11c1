"""Of the shares that plans call as good as their best, how many were.

A share was as good if its measured mean over the seeds is at most {near:g} (or {twice:g}) below the best mean
of its task and budget. "Called" is the fraction of the five shares that plans call as good. Optimism is the
accuracy that the report expects of its share, less the measured mean of the same share: mean over plans, and
median of its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    found, plans = regret.accuracies(), regret.planned().sel(source=list(regret.PLANS))

    def of(tasks: list[str]) -> xr.Dataset:
        measured, planned = found.sel(task=tasks), plans.sel(task=tasks)
        parts = [regret.called(measured, planned, near) for near in _NEAR]
        data = xr.concat(parts, "near").assign_coords(near=list(_NEAR))
        over = regret.expected(measured, planned)
        rest = [dim for dim in over.dims if dim != "source"]
        data["optimism"], data["off_by"] = over.mean(rest), abs(over).median(rest)
        return data

    return regret.described(regret.by_group(of), "calibration", plans)


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and source."""
    from empirical.studies.tables import Table

    def cells(part: xr.Dataset) -> list[str]:
        fractions = [part.share.isel(near=0)]
        fractions += [part[name].sel(near=near) for near in _NEAR for name in ("called", "others")]
        percent = [f"{float(fraction):.0%}" for fraction in fractions]
        return [*percent, f"{float(part.optimism):+.3f}", f"{float(part.off_by):.3f}"]

    within = [f"{kind} within {near:g}" for near in _NEAR for kind in ("called,", "others,")]
    header = ["calibration", "plan from", "called", *within, "optimism", "its size"]
    return Table(header, regret.rows(data, "source", cells), labels=2)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    near, twice = map(float, data.near)
    return {"near": near, "twice": twice}


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, caption=caption, argv=argv)


if __name__ == "__main__":
    streams.run(main)
