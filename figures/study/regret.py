"""What rules for the share of the budget would have cost on the tasks of the study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from figures.study import held_out

if TYPE_CHECKING:
    import xarray as xr

FILE = "docs/study/planner.nc"
TASKS = ("digits-rotated", "digits-dimmed", "glyphs", "digits-inverted", "digits-turned", "glyphs-rotated")
# and those that no plan was designed on
GROUPS = {
    "six new tasks": tuple(held_out.TASKS),
    "six earlier tasks": TASKS,
    "all twelve": (*TASKS, *held_out.TASKS),
}
# what plans are judged by; the other sources show what parts of them do
PLANS = ("private features", "private, last layer")
RULES = {"all FFT": 0.0, "a quarter LP": 0.25, "half and half": 0.5, "three quarters LP": 0.75, "all LP": 1.0}
READS = (FILE, *(f"docs/study/{task}.nc" for task in GROUPS["all twelve"]))
# what a share may lose to be called as good
NEAR = 0.01


def measured(task: str) -> xr.DataArray:
    """Test accuracy by share, budget and seed, as the study measured it; NaN where a seed is incomplete."""
    from langevin.store import files

    run = files.load(ROOT / f"docs/study/{task}.nc")
    arms = run.test_accuracy.sel(arm=np.isin(run.method.values, ("fft", "lp-fft", "lp")))
    arms = arms.where(arms.notnull().all(("arm", "epsilon")))
    return arms.swap_dims(arm="share").sortby("share").drop_vars(("arm", "method"))


def accuracies() -> xr.DataArray:
    """Return the measured test accuracy by task, share, budget and seed."""
    import xarray as xr

    tasks = GROUPS["all twelve"]
    return xr.concat([measured(task) for task in tasks], "task").assign_coords(task=list(tasks))


def planned() -> xr.Dataset:
    """Load the committed plans."""
    from langevin.store import files

    return files.load(ROOT / FILE)


def by_group(of: Callable[[list[str]], xr.Dataset]) -> xr.Dataset:
    """Compute something of each of `GROUPS` of tasks, along ``group``."""
    import xarray as xr

    parts = [of(list(tasks)).expand_dims(group=[name]) for name, tasks in GROUPS.items()]
    found: Any = xr.concat(parts, "group")
    return found


def described(data: xr.Dataset, what: str, plans: xr.Dataset) -> xr.Dataset:
    """Say of each variable that it is of ``what``, and where it was computed."""
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"{what}: {name}".replace("_", " "), "units": "1"}
    return data.assign_attrs(machine=f"plans on {plans.attrs['machine']}; study on a processor")


def rows(data: xr.Dataset, by: str, cells: Callable[[Any], list[str]]) -> list[list[str]]:
    """Return rows of a table: the group, named once, the value of ``by``, and cells; no row without any."""
    found = []
    for group in map(str, data.group.values):
        own = {str(value): cells(data.sel({"group": group, by: value})) for value in data[by].values}
        there = [[value, *row] for value, row in own.items() if row]
        found += [[group if k == 0 else "", *row] for k, row in enumerate(there)]
    return found


def lost(found: xr.DataArray, plans: xr.DataArray) -> xr.DataArray:
    """Return the accuracy lost by each plan and each of `RULES` against hindsight, by task, budget and seed.

    Hindsight takes, for each task and budget, the share with the highest mean over all *other* seeds, which
    is the best choice that could have been known. It may be worse than a rule on a single seed.

    Parameters
    ----------
    found : DataArray
        Measured accuracy, over ``task``, ``share``, ``epsilon`` and ``seed``; NaN where a seed is missing.
    plans : DataArray
        Planned shares, a subset of those measured, over ``source``, ``task``, ``seed`` and ``epsilon``; NaN
        where there is no plan. Rules are compared where any source has one.
    """
    import xarray as xr

    plans = plans.reindex(seed=found.seed)
    some = plans.notnull().any("source")

    best = _hindsight(found)
    chosen = {str(source): plans.sel(source=source, drop=True) for source in plans.source.values}
    every = {"task": found.task, "seed": found.seed, "epsilon": found.epsilon}
    chosen |= {rule: xr.DataArray(share).expand_dims(every).where(some) for rule, share in RULES.items()}
    rules = [
        (best - found.sel(share=shares.fillna(0.0), drop=True)).where(shares.notnull())
        for shares in chosen.values()
    ]
    return xr.concat(rules, "rule", coords="minimal", compat="override").assign_coords(rule=list(chosen))


def lost_by_means(found: xr.DataArray, plans: xr.DataArray) -> xr.DataArray:
    """Return what `lost` does of the means over all seeds, against the best of these means.

    This has less noise, but the best mean is the luckiest: even the best rule seems to lose some.
    """
    import xarray as xr

    return lost(xr.zeros_like(found) + found.mean("seed"), plans)


def luck(found: xr.DataArray) -> xr.DataArray:
    """Return by how much the best mean over the seeds exceeds what hindsight of the other seeds reaches."""
    return found.mean("seed").max("share") - _hindsight(found).mean("seed")


def _hindsight(found: xr.DataArray) -> xr.DataArray:
    """Each seed's accuracy at the share that is best over all others."""
    there = found.notnull().all("share")
    others = (found.sum("seed") - found.fillna(0.0)) / (there.sum("seed") - there)
    return found.sel(share=others.idxmax("share"), drop=True)


def mean_and_error(values: xr.DataArray) -> xr.Dataset:
    """Return the mean over all but the rule, and its standard error over the seeds (tasks and budgets fixed).

    Of tasks where a rule has no value at all nothing is used; ``tasks`` counts the others. Tasks with as many
    seeds as each other are averaged by seed, as they may have splits in common; tasks with another number of
    seeds are independent of them. ``seeds`` is the smallest number.
    """
    import xarray as xr

    values = values if "task" in values.dims else values.expand_dims("task")
    rest = [dim for dim in values.dims if dim not in ("rule", "task", "seed")]
    by_task = values.mean(rest, skipna=False)
    rules = by_task.transpose("rule", "task", "seed") if "rule" in by_task.dims else by_task
    found = [_mean_and_error(rule) for rule in rules.values.reshape(-1, *rules.values.shape[-2:])]
    dims = ("rule",) if "rule" in by_task.dims else ()
    columns = zip(*found, strict=True)
    data = {
        name: (dims, list(column) if dims else column[0])
        for name, column in zip(("mean", "standard_error", "seeds", "tasks"), columns, strict=True)
    }
    return xr.Dataset(data, {"rule": values.rule} if dims else None)


def _mean_and_error(values: np.ndarray) -> tuple[float, float, int, int]:
    """Of one rule, over (task, seed)."""
    there = np.isfinite(values)
    counts = there.sum(1)
    tasks = int((counts > 0).sum())
    if not tasks:
        return np.nan, np.nan, 0, 0
    mean = variance = 0.0
    fewest = values.shape[1]
    for count in np.unique(counts[counts > 0]):
        own = counts == count
        by_seed = values[own][:, there[own].all(0)].sum(0) / tasks
        mean += by_seed.mean()
        variance += by_seed.var(ddof=1) / len(by_seed) if len(by_seed) > 1 else np.nan
        fewest = min(fewest, len(by_seed))
    return mean, float(np.sqrt(variance)), fewest, tasks


def ahead(values: xr.DataArray) -> xr.Dataset:
    """Return how much more each fixed rule loses than each plan, by seed, over all tasks and budgets."""
    import xarray as xr

    plans = values.drop_sel(rule=list(RULES))
    parts = [mean_and_error(values.sel(rule=rule, drop=True) - plans) for rule in RULES]
    return xr.concat(parts, "fixed").assign_coords(fixed=list(RULES)).rename(rule="plan")


def called(found: xr.DataArray, plans: xr.Dataset, near: float = NEAR) -> xr.Dataset:
    """Return how many of the shares that plans call as good were, and how many of the others.

    A share was as good if its mean over the seeds is at most ``near`` below the best of its task and budget.

    Returns
    -------
    xarray.Dataset
        Over ``source``: ``called`` and ``others``, the fractions that were, and ``share``, that of the shares
        which are called so.
    """
    import xarray as xr

    mean = found.mean("seed").rename(share="lp_share")
    were = mean.max("lp_share") - mean <= near + 1e-12
    good = plans.as_good
    rest = [dim for dim in good.dims if dim != "source"]

    def fraction(of: xr.DataArray) -> xr.DataArray:
        return (were & of).sum(rest) / of.sum(rest)

    return xr.Dataset(
        {"called": fraction(good == 1), "others": fraction(good == 0), "share": good.mean(rest)}
    )


def expected(found: xr.DataArray, plans: xr.Dataset) -> xr.DataArray:
    """Return the accuracy that a plan expects of its share, less the measured mean of the same share."""
    places = plans.share.fillna(0.0)
    simulated = plans.accuracy.sel(lp_share=places, drop=True)
    real = found.mean("seed").sel(share=places, drop=True)
    return (simulated - real).where(plans.share.notnull())


def variants(plans: xr.Dataset) -> xr.DataArray:
    """Return what other rules choose from the simulations of the plans of one source, by ``source``.

    The most accurate share, over both worlds or in one alone: with nothing hidden, or with hidden directions.
    Rates are those that the plan chose for both.
    """
    import xarray as xr

    named = {
        "most accurate": plans.accuracy,
        "nothing hidden": plans.nothing_hidden,
        "all hidden": plans.hidden_directions,
    }
    parts = [
        values.fillna(-1.0).idxmax("lp_share").where(values.notnull().all("lp_share"))
        for values in named.values()
    ]
    found: Any = xr.concat(parts, "source").assign_coords(source=list(named))
    return found
