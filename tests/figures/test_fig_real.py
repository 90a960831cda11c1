"""What the captions on the real backbone say of the committed studies."""

import numpy as np
import pytest

from empirical.studies.tables import paired
from figures.output import ROOT
from figures.study import fig_features_real, fig_real, studies
from figures.tables import tab_lite0
from langevin.store import files


def points(value):
    return round(100 * float(value), 1)


@pytest.fixture(scope="module")
def data():
    return fig_real.compute()


@pytest.fixture(scope="module")
def watched():
    return fig_features_real.compute()


def test_where_probing_leads_and_where_not():
    grids = {name: files.load(ROOT / studies.FOLDER / f"{name}.nc") for name in tab_lite0.STUDIES}
    ahead = {name: paired(grid, "fft").sel(arm="lp") for name, grid in grids.items()}
    low = ahead["lite0"].sel(epsilon=0.3)
    assert (points(low["mean"]), points(low.standard_error)) == (3.9, 0.9)
    assert (ahead["lite0-60k"]["mean"] < 0).all()
    assert ahead["elpv"].sel(epsilon=1)["mean"] > 2 * ahead["elpv"].sel(epsilon=1).standard_error
    for grid in grids.values():
        better = [(found := paired(grid, other)).significant & (found["mean"] > 0) for other in ("lp", "fft")]
        shared = [arm for arm in grid.arm.values if str(arm).startswith("lp-fft")]
        assert not (better[0] & better[1]).sel(arm=shared).any()


def test_panels_are_of_their_studies(data):
    assert (data.behind.min("lp_share") == 0).all()
    assert data.behind.sel(lp_share=0, epsilon=0.3).item() == pytest.approx(3.9, abs=0.05)
    grid = files.load(ROOT / fig_real.GRID)
    expected = grid.test_accuracy.sel(arm="lora", epsilon=8).mean().item()
    assert data.full.sel(arm="lora", epsilon=8).item() == pytest.approx(expected)
    two = files.load(ROOT / fig_real.TWO_LAYERS)
    assert two.sizes["seed"] == 10
    assert grid.sizes["seed"] == 5
    assert two.forecast_valid.all()
    # two layers lose nothing to probing at the smallest budget
    lost = data.two.sel(of="lp", epsilon=0.3) - data.two.sel(of="fft", epsilon=0.3)
    assert (lost < 2 * data.two_error.sel(of="fft", epsilon=0.3)).all()


def test_simulation_and_practice_agree_at_the_same_rates():
    two = files.load(ROOT / fig_real.TWO_LAYERS)
    same = (two.lr.isel(how=0) == two.lr.isel(how=1)).sel(arm=["lp", "fft"])
    assert int(same.sum()) == 7
    means, spread = two.test_accuracy.mean("seed"), two.test_accuracy.var("seed", ddof=1)
    score = abs(means.isel(how=0) - means.isel(how=1)) / np.sqrt(spread.sum("how") / two.sizes["seed"])
    assert float(score.sel(arm=["lp", "fft"]).where(same).max()) < 3


def test_a_large_head_distorts_features_first(watched):
    low = watched.sel(epsilon=0.3, step=20)
    assert watched.attrs["seeds"] == 5
    large, default = (low.sel(head=head) for head in ("large", "default"))
    assert large.from_head < -3 * large.from_head_error
    # the default head has the same sign, within two standard errors
    assert -2 * default.from_head_error < default.from_head < 0
    said = fig_features_real.caption(watched)
    assert said["early"] == f"{-points(default.from_head)} ± {points(default.from_head_error)}"
    assert said["large_early"] == f"{-points(large.from_head)} ± {points(large.from_head_error)}"
    assert (said["soon"], said["steps"], said["images"]) == (20, 60, 6000)


def test_no_method_differs_on_shifted_cells():
    grid = files.load(ROOT / studies.FOLDER / "elpv-shift.nc")
    assert not any(paired(grid, other).significant.any() for other in ("lp", "fft"))


def test_the_caption_of_methods_follows_the_data(data):
    said = fig_real.caption(data)
    assert (said["below"], said["two_below"]) == ("+3.9 ± 0.9", "-0.6 ± 0.5")
    assert (said["seeds"], said["two_seeds"], said["trials"]) == (5, 10, 5)
    assert fig_real.caption(data.assign(full_below=2 * data.full_below))["below"] != said["below"]
