"""What rules for the share of the budget would have cost on the tasks of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from figures.output import ROOT

if TYPE_CHECKING:
    import xarray as xr

FILE = "docs/study/planner.nc"
TASKS = ("digits-rotated", "digits-dimmed", "glyphs", "digits-inverted", "digits-turned", "glyphs-rotated")
RULES = {"all FFT": 0.0, "all LP": 1.0, "half and half": 0.5}
READS = (FILE, *(f"docs/study/{task}.nc" for task in TASKS))


def measured(task: str) -> xr.DataArray:
    """Test accuracy by share, budget and seed, as the study measured it."""
    from langevin.store import files

    run = files.load(ROOT / f"docs/study/{task}.nc")
    arms = run.test_accuracy.sel(arm=np.isin(run.method.values, ("fft", "lp-fft", "lp")))
    return arms.swap_dims(arm="share").sortby("share").drop_vars(("arm", "method"))


def accuracies() -> xr.DataArray:
    """Return the measured test accuracy by task, share, budget and seed."""
    import xarray as xr

    return xr.concat([measured(task) for task in TASKS], "task").assign_coords(task=list(TASKS))


def planned() -> xr.Dataset:
    """Load the committed plans."""
    from langevin.store import files

    return files.load(ROOT / FILE)


def lost(found: xr.DataArray, plans: xr.DataArray) -> xr.DataArray:
    """Return the accuracy lost by each plan and each of `RULES` against hindsight, by task, budget and seed.

    Hindsight takes, for each task and budget, the share with the highest mean over all *other* seeds, which
    is the best choice that could have been known. It may be worse than a rule on a single seed.

    Parameters
    ----------
    found : DataArray
        Measured accuracy, over ``task``, ``share``, ``epsilon`` and ``seed``.
    plans : DataArray
        Planned shares, a subset of those measured, over ``source``, ``task``, ``seed`` and ``epsilon``; NaN
        where there is no plan.
    """
    import xarray as xr

    others = (found.sum("seed") - found) / (found.sizes["seed"] - 1)
    best = found.sel(share=others.idxmax("share"), drop=True)
    chosen = {str(source): plans.sel(source=source, drop=True) for source in plans.source.values}
    every = {"task": found.task, "seed": found.seed, "epsilon": found.epsilon}
    chosen |= {rule: xr.DataArray(share).expand_dims(every) for rule, share in RULES.items()}
    rules = [
        (best - found.sel(share=shares.fillna(0.0), drop=True)).where(shares.notnull())
        for shares in chosen.values()
    ]
    return xr.concat(rules, "rule", coords="minimal", compat="override").assign_coords(rule=list(chosen))


def mean_and_error(values: xr.DataArray) -> xr.Dataset:
    """Return the mean over all but the rule, and its standard error over the seeds (tasks and budgets fixed).

    Only seeds with all tasks and budgets are used; ``seeds`` counts them.
    """
    import xarray as xr

    rest = [dim for dim in values.dims if dim not in ("rule", "seed")]
    by_seed = values.mean(rest, skipna=False)
    count = by_seed.count("seed")
    error = by_seed.std("seed", ddof=1) / np.sqrt(count)
    return xr.Dataset({"mean": by_seed.mean("seed"), "standard_error": error, "seeds": count})


def ahead(values: xr.DataArray) -> xr.Dataset:
    """Return how much more each fixed rule loses than each plan, by seed, over all tasks and budgets."""
    import xarray as xr

    plans = values.drop_sel(rule=list(RULES))
    parts = [mean_and_error(values.sel(rule=rule, drop=True) - plans) for rule in RULES]
    return xr.concat(parts, "fixed").assign_coords(fixed=list(RULES)).rename(rule="plan")
