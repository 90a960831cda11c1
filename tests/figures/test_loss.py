"""The losses of the figure lie within their bounds."""

import pytest

from figures.theory import fig_loss_spreads


@pytest.fixture(scope="module")
def data():
    return fig_loss_spreads.compute(quick=True)


def beyond(data, curve, band, slack, scale=1.0):
    low, high = data[band].sel(side="lower"), scale * data[band].sel(side="upper")
    return bool(((data[curve] < low - slack) | (data[curve] > high + slack)).any())


def test_zeroth_order_is_enclosed(data):
    slack = 1e-5 * data.zeroth
    assert not beyond(data, "zeroth", "sandwich", slack)
    # in narrow classes the bounds leave no room
    probing = data.sel(case="LP").isel(spread=0)
    assert beyond(probing, "zeroth", "sandwich", slack.sel(case="LP").isel(spread=0), scale=0.99)


def test_expected_loss_is_certified(data):
    slack = 5 * data.error + 0.02 * data["mean"]
    assert not beyond(data, "mean", "certified", slack)
    assert beyond(data, "mean", "certified", slack, scale=0.5)


def test_where_and_why_the_sandwich_ends(data):
    reasons = data.reason.astype(str)
    assert (reasons.sel(case=["LP", "LP-FFT"]) == "").all()
    assert "left its cone" in reasons.sel(case="FFT").isel(spread=-1).item()
    assert reasons.sel(case="LP-FFT, square loss").str.contains("margin").all()
    beyond_end = data.time > data.end
    assert data.sandwich.where(beyond_end).isnull().all()


def test_the_diffusion_drops_below_its_approximation(data):
    end = data.isel(record=-1)
    gap = (end["mean"] - end.zeroth) / end.error
    assert (gap.sel(case=["FFT", "LP-FFT"]) < -4).all()
    assert (gap.sel(case="LP") > -4).all()
