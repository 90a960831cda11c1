"""What a rule would have cost, on accuracies that are known."""

import numpy as np
import pytest
import xarray as xr

from figures.study import regret

SHARES = [0.0, 0.5, 1.0]


def measured(values):
    """One task and budget, over (share, seed)."""
    array = np.array(values)[None, :, None]
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
