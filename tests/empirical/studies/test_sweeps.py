"""Sweeps of fine-tunings."""

import numpy as np
import pytest

from empirical.data.shift import Shift
from empirical.recipe import Recipe
from empirical.studies.grid import compute_cell
from empirical.studies.setting import Setting
from empirical.studies.sweeps import FINETUNINGS
from langevin.sweeps import Grid, run_sweep

SETTING = {"epochs": 1, "widths": [16], "rotation": 20}
RECIPE = {"steps": 4, "method": "lp-fft", "delta": 1e-4}


def test_each_cell_is_a_fine_tuning(tmp_path):
    sweep = {"epsilon": [1.0, float("inf")], "lp_share": [0.0, 0.5], "seed": [3]}
    record = {"variables": ["test_accuracy", "test_loss", "spent"]}
    grid = Grid(FINETUNINGS, sweep, SETTING | RECIPE, record)
    run = run_sweep(grid, tmp_path / "s.zarr", workers=2, threads=True).load()
    assert (run.status == 1).all(), run.error.values
    assert len(list((tmp_path / "s.zarr.bodies").glob("*.npz"))) == 1
    setting = Setting("digits", shift=Shift(20), epochs=1, widths=(16,))
    for epsilon in sweep["epsilon"]:
        found = compute_cell(setting, Recipe("lp-fft", lp_share=0.5, steps=4, epsilon=epsilon), 3)
        cell = run.sel(epsilon=epsilon, lp_share=0.5, seed=3)
        assert {name: cell[name].item() for name in record["variables"]} == {
            name: found[name] for name in record["variables"]
        }
    assert run.spent.sel(epsilon=1.0).max() <= 1
    assert not np.array_equal(run.test_loss[0], run.test_loss[1])


@pytest.mark.parametrize(
    ("sweep", "record", "message"),
    [
        (
            {"method": ["lp", "fft"]},
            {},
            r"lp_share must be 1 for 'lp', got 0.5: use 'lp-fft' \(at method = lp\)",
        ),
        ({"epsilon": [0.0]}, {}, "epsilon must be positive, got 0.0"),
        ({"clip": ["none"]}, {}, "clip must be positive with epsilon=1"),
        ({"gain": [0.0]}, {}, "gain must not be 0"),
        ({"bodies": ["a", "b"]}, {}, "cannot sweep 'bodies': it does not affect results"),
        ({"learning_rate": [1.0]}, {}, r"unknown parameter 'learning_rate' in \[sweep\]"),
        ({"seed": [-1]}, {}, "seed must be a seed, a whole number from 0; got -1"),
        ({"seed": [0]}, {"variables": ["cka"]}, "variables: 'cka' needs features = true"),
        ({"seed": [0]}, {"variables": ["speed"]}, "variables must be one of"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_cell(sweep, record, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Grid(FINETUNINGS, sweep, {"lp_share": 0.5}, record)
