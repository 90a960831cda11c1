"""What the captions on the real backbone say of the committed studies."""

import numpy as np
import pytest

from empirical.studies.tables import paired
from figures.output import ROOT
from figures.study import fig_features_real, fig_real, studies, tab_lite0
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


def test_features_change_as_said(watched):
    runs = files.load(ROOT / fig_features_real.FILE)
    caption = " ".join((fig_features_real.__doc__ or "").split())
    assert f"means of {runs.sizes['seed']} seeds" in caption
    assert runs.attrs["left"] == 0
    low, high = watched.sel(epsilon=0.3), watched.sel(epsilon=3.0)

    def words(values, error, signed=False):
        sign = f"{points(values):+}" if signed else f"{abs(points(values))}"
        return f"{sign} ± {points(error)}"

    for at in (low, high):
        fft = at.sel(run="fft", step=60)
        assert words(fft.change, fft.change_error, signed=True) in caption
    training = low.sel(head="default", step=60)
    assert f"by {words(training.from_training, training.from_training_error)} points" in caption
    assert f"noise costs {words(training.from_noise, training.from_noise_error)}" in caption
    for head in ("default", "large"):
        early, late = (low.sel(head=head, step=step) for step in (20, 60))
        assert early.from_head < -2 * early.from_head_error
        for part in (early, late):
            assert words(part.from_head, part.from_head_error) in caption
