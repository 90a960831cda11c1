"""What the figure varies with the threshold, and what it holds fixed."""

import numpy as np
import pytest
import xarray as xr

import bounds
from figures.theory import fig_clipping, fig_clipping_share


@pytest.fixture(scope="module")
def data():
    at = fig_clipping.grid(quick=True)
    return xr.Dataset(fig_clipping.simulated(at, quick=True), at).assign_coords(
        clipping=list(fig_clipping.CLIPPINGS)
    )


@pytest.fixture(scope="module")
def shares():
    return fig_clipping_share.compute(quick=True)


@pytest.mark.parametrize("clipping", fig_clipping.CLIPPINGS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_one_budget(share, clipping):
    spent = [
        bounds.zcdp(fig_clipping.schedule(clip, time, share, clipping))
        for clip, time in ((0.01, 1.0), (1.0, 0.1), (10.0, 30.0))
    ]
    assert spent == pytest.approx([fig_clipping.RHO] * 3)


def test_normalised_clipping_knows_the_product_alone(data):
    # the same product of threshold and time
    at = {
        "threshold": xr.DataArray(10.0 ** np.array([-2, 0, 1]), dims="pair"),
        "time": xr.DataArray(10.0 ** np.array([0.5, -1.5, -2.5]), dims="pair"),
    }
    loss = data.loss.sel(share=0).sel(at, method="nearest")
    normalised, flat = (loss.sel(clipping=clipping).values for clipping in ("normalised", "flat"))
    assert normalised == pytest.approx(np.full(3, normalised[0]), rel=1e-6)
    assert np.ptp(flat) > 0.1 * flat.max()


def test_what_the_caption_of_the_loss_says(data):
    loss = data.loss.sel(time=fig_clipping.TIME, clipping="flat", share=0)
    assert loss[1] < loss[0]
    assert loss[1] < loss[-1]


def test_what_the_caption_of_the_shares_says(shares):
    now = shares.sel(time=fig_clipping.TIME)
    assert (np.diff(now.least_share) <= 0).all()
    assert now.least_share[0] > 1
    share, _ = fig_clipping_share.least(now.loss.sel(clipping="flat"), now.error.sel(clipping="flat"))
    assert share[0] == 0
    assert share[-1] == 1
    # probing first prevents what the head causes, not what the noise does
    wide = now.isel(threshold=-1).sel(share=0.4)
    assert wide.flow == 0
    assert wide.distorted.sel(clipping="flat") > 0.3


def test_least_share_and_its_uncertainty():
    dims = {"threshold": [1.0, 2.0], "share": [0.0, 0.5, 1.0]}
    loss = xr.DataArray([[1.0, 2.0, 3.0], [1.0, 0.9, 0.5]], dims)
    error = xr.full_like(loss, 0.4)
    share, (low, high) = fig_clipping_share.least(loss, error)
    assert share.tolist() == [0.0, 1.0]
    assert low.tolist() == [0.0, 1.0]
    assert high.tolist() == [0.5, 0.0]
