"""What a rule would have cost, on accuracies that are known."""

import numpy as np
import pytest
import xarray as xr

from figures.output import ROOT
from figures.study import regret
from figures.tables import tab_aims, tab_calibration, tab_hedge, tab_regret, tab_tasks

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]


def measured(values):
    """One task and budget, over (share, seed); of shares 0, 0.5 and 1, the others are never right."""
    array = np.zeros((1, 5, 1, np.shape(values)[1]))
    array[0, ::2, 0] = values
    seeds = np.arange(array.shape[-1])
    coordinates = {"task": ["a"], "share": SHARES, "epsilon": [1.0], "seed": seeds}
    return xr.DataArray(array, coordinates)


def planned(shares):
    values = np.array(shares)[None, None, :, None]
    coordinates = {"source": ["plan"], "task": ["a"], "seed": np.arange(len(shares)), "epsilon": [1.0]}
    return xr.DataArray(values, coordinates)


def test_hindsight_is_of_the_other_seeds():
    # on the last seed share 0 is best by far, which its own hindsight must not know
    found = measured([[0.1, 0.1, 0.9], [0.5, 0.5, 0.4], [0.3, 0.2, 0.3]])
    lost = regret.lost(found, planned([0.5, 1.0, 0.0])).isel(task=0, epsilon=0)
    # without seed 0 or 1 share 0 has the mean 0.5, share 0.5 has 0.45; without seed 2 share 0.5 is best
    best = np.array([0.1, 0.1, 0.4])
    assert lost.sel(rule="plan").values == pytest.approx(best - [0.5, 0.2, 0.9])
    assert lost.sel(rule="all FFT").values == pytest.approx(best - [0.1, 0.1, 0.9])
    assert lost.sel(rule="all LP").values == pytest.approx(best - [0.3, 0.2, 0.3])
    assert lost.sel(rule="half and half").values == pytest.approx(best - [0.5, 0.5, 0.4])


def test_a_missing_seed_changes_nothing_but_itself() -> None:
    values = [[0.1, 0.1, 0.9, 0.0], [0.5, 0.5, 0.4, 0.0], [0.3, 0.2, 0.3, 1.0]]
    found, plans = measured(values), planned([0.5, 1.0, 0.0, 0.5])
    found[..., 3] = np.nan
    lost = regret.lost(found, plans)
    whole = regret.lost(measured(np.array(values)[:, :3]), planned([0.5, 1.0, 0.0]))
    assert lost.isel(seed=slice(3)).values == pytest.approx(whole.values)
    assert lost.isel(seed=3).isnull().all()
    assert regret.mean_and_error(lost).seeds.values.tolist() == [3] * lost.sizes["rule"]
    # rules are compared on the seeds that have a plan
    fewer = regret.lost(measured(values), planned([0.5, 1.0]))
    assert fewer.notnull().sum("seed").values.ravel().tolist() == [2] * lost.sizes["rule"]


def test_a_plan_is_ahead_of_a_rule_by_what_the_rule_loses_more():
    random = np.random.default_rng(0)
    found = measured(np.array([[0.2], [0.5], [0.4]]) + 0.01 * random.standard_normal((3, 20)))
    lost = regret.lost(found, planned([0.5] * 20))
    ahead = regret.ahead(lost).sel(plan="plan")
    assert ahead["mean"].sel(fixed="half and half") == 0
    for rule, gap in (("all FFT", 0.3), ("all LP", 0.1)):
        at = ahead.sel(fixed=rule)
        assert abs(at["mean"] - gap) < 4 * at.standard_error < 0.2 * gap
    # paired: what all shares have in common on a seed is in no error
    common = regret.ahead(regret.lost(found + np.arange(20), planned([0.5] * 20))).sel(plan="plan")
    assert common.standard_error.values == pytest.approx(ahead.standard_error.values)


def test_tasks_with_other_numbers_of_seeds_are_independent_and_those_without_a_plan_left_out() -> None:
    random = np.random.default_rng(1)
    values = xr.DataArray(
        random.standard_normal((1, 4, 20, 2)),
        {"rule": ["plan"], "task": list("abcd"), "seed": np.arange(20), "epsilon": [1.0, 3.0]},
    )
    values[0, 2, 5:] = np.nan
    values[0, 3] = np.nan
    found = regret.mean_and_error(values).sel(rule="plan")
    by_seed = values[0].mean("epsilon").values
    assert (found.tasks, found.seeds) == (3, 5)
    means = [by_seed[0].mean(), by_seed[1].mean(), by_seed[2, :5].mean()]
    assert found["mean"].item() == pytest.approx(np.mean(means))
    # a and b have seeds in common: their errors are not added as those of independent tasks
    both, third = by_seed[:2].sum(0), by_seed[2, :5]
    variance = both.var(ddof=1) / 20 + third.var(ddof=1) / 5
    assert found.standard_error.item() == pytest.approx(np.sqrt(variance) / 3)
    # dropping a task changes the result, so that the above is no accident
    assert found["mean"].item() != pytest.approx(np.mean(means[:2]))


def test_shares_called_as_good_are_those_near_the_best_mean() -> None:
    found = measured(np.repeat([[0.505], [0.51], [0.45]], 4, 1))
    plans = planned([0.5] * 4).to_dataset(name="share")
    good = np.broadcast_to([1.0, 0.0, 0.0, 1.0, 0.0], (1, 1, 4, 1, 5))
    dims = ("source", "task", "seed", "epsilon", "lp_share")
    plans["as_good"], plans["accuracy"] = (dims, good), (dims, 0.1 + 0.5 * good)
    plans = plans.assign_coords(lp_share=SHARES)
    calls = regret.called(found, plans).sel(source="plan")
    # shares 0 and 0.75 are called, of which 0 was; of the other three 0.5 was
    assert (calls.called, calls.others) == (0.5, pytest.approx(1 / 3))
    assert calls.share == pytest.approx(0.4)
    # at a tenth more all but those that are never right were
    assert regret.called(found, plans, 0.1).others == pytest.approx(2 / 3)
    assert regret.expected(found, plans).values == pytest.approx(0.1 - 0.51)


def test_the_loss_by_means_has_no_noise_of_single_seeds() -> None:
    found = measured([[0.1, 0.3, 0.2], [0.5, 0.3, 0.4], [0.3, 0.2, 0.4]])
    lost = regret.lost_by_means(found, planned([0.5, 0.0, 1.0])).sel(rule="plan")
    assert lost.values.ravel() == pytest.approx([0.0, 0.2, 0.1])
    # hindsight of the other seeds takes share 0.5 throughout, as the best mean does
    assert regret.luck(found).item() == pytest.approx(0.0)
    # of equal means it takes what the seed itself does not favour
    noise = np.random.default_rng(0).standard_normal((3, 40))
    assert regret.luck(measured(10 + noise - noise.mean(1, keepdims=True))).item() > 0.5


@pytest.mark.parametrize("table", [tab_regret, tab_aims, tab_tasks, tab_calibration, tab_hedge])
def test_the_page_has_the_tables_of_the_committed_plans(table) -> None:
    page = (ROOT / "docs/study/planner.md").read_text(encoding="utf8")
    made = table.tabulate(table.compute()).markdown().splitlines()
    assert len(made) > 6
    assert [line for line in made if line not in page] == []
