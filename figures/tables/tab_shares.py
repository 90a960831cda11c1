"""The best share of the budget for probing: by theory, simulated, and measured.

The tasks are those of the study, for several budgets epsilon. Theory: whether the theorems on the share give
a result for the frozen features. Simulated: the share with the highest mean accuracy over the seeds in the
simulations of `empirical.plan_share`. Measured: the same for real DP-SGD, with the next best share and what
it lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table


def compute(quick: bool = False) -> xr.Dataset:
    """Compute whether the theory gives a share for the features of each task, those of seed 0."""
    import xarray as xr

    says = xr.DataArray([_theory_says(task) for task in regret.TASKS], {"task": list(regret.TASKS)})
    says.attrs = {"long_name": "whether the theory gives a share", "units": "1"}
    return xr.Dataset({"says": says})


def collect(data: xr.Dataset) -> xr.Dataset:
    """Add simulated and measured shares by task and budget."""
    tasks = list(regret.TASKS)
    found, plans = (
        regret.accuracies().sel(task=tasks),
        regret.planned().sel(task=tasks, source=list(regret.PLANS)),
    )
    mean = found.mean("seed")
    order = mean.argsort(axis=mean.get_axis_num("share"))
    first, second = (
        found.share[order.isel(share=-1 - k)].drop_vars("share", errors="ignore") for k in (0, 1)
    )
    gain = found.sel(share=first, drop=True) - found.sel(share=second, drop=True)
    simulated = plans.accuracy.mean("seed").idxmax("lp_share")
    parts = {
        "simulated": simulated,
        "measured": first,
        "runner_up": second,
        "gain": gain.mean("seed"),
        "gain_error": gain.std("seed", ddof=1) / np.sqrt(gain.sizes["seed"]),
    }
    for name, values in parts.items():
        data[name] = values.assign_attrs(long_name=name.replace("_", " "), units="1")
    return data


def _theory_says(task: str) -> bool:
    """Return whether the theory gives a minimum or a loss-optimal share."""
    from empirical.planning.plan import plan_share
    from figures.study.plans import inputs

    arrays = inputs(task, 0, "private features")
    # the theory's result depends only on the features
    plan = plan_share(**arrays, epsilon=1.0, delta=1e-4, steps=4, draws=2)
    return any(
        any(m.valid for m in a.minimum) or any(c.valid for c in a.crossovers) for a in plan.theory.values()
    )


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per task and source and one column per budget."""
    from empirical.studies.tables import Table, number

    rows = []
    for task in data.task.values:
        part = data.sel(task=task)
        budgets = part.epsilon.values
        says = "a share" if part.says else "nothing"
        rows.append([str(task), "theory", *[says] * len(budgets)])
        for source in part.source.values:
            shares = part.simulated.sel(source=source).values
            rows.append(["", f"simulated, {source}", *(f"{share:g}" for share in shares)])
        rows.append(["", "measured", *(f"{share:g}" for share in part.measured.values)])
        rows.append(["", "next best", *(f"{share:g}" for share in part.runner_up.values)])
        gains = zip(part.gain.values, part.gain_error.values, strict=True)
        rows.append(["", "lost by it", *(number(float(m), float(e)) for m, e in gains)])
    header = ["best lp share", "by", *(f"ε = {epsilon:g}" for epsilon in data.epsilon.values)]
    return Table(header, rows, labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, collect=collect, argv=argv)


if __name__ == "__main__":
    streams.run(main)
