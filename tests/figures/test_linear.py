"""The simulated losses of the figure against what is exact, what bounds them and what estimates them."""

import numpy as np
import pytest

from figures.theory import fig_linear, fig_width
from langevin import Schedule, zeroth_order

STEPS = 500
# bounds are equalities at time 0
ROUNDING = 1e-10


@pytest.fixture(scope="module")
def data():
    return fig_linear.compute(quick=True)


@pytest.fixture(scope="module")
def step_error():
    """Change of the zeroth-order loss by the quick version's steps, by method."""
    found = {}
    for method in ("lp", "fft"):
        setting = (*fig_linear.setting(), getattr(Schedule, method)(time=fig_linear.TIME))
        coarse = zeroth_order(*setting, times=fig_linear.TIMES, dt=fig_linear.TIME / STEPS).loss
        found[method] = np.abs(coarse.values - zeroth_order(*setting, times=fig_linear.TIMES).loss.values)
    return found


def test_probing_is_exact(data, step_error):
    # a step of dt makes the stationary variance larger by a share of rate dt / 2, below 1 % here
    slack = 4.5 * data.lp_error + 2 * step_error["lp"] + 0.01 * data.lp_exact
    assert (np.abs(data.lp_mean - data.lp_exact) <= slack).all()
    # noise larger by a half
    assert (np.abs(data.lp_mean - 1.5**2 * data.lp_exact) > slack).isel(time=-1).all()


def test_unconditional_bound(data, step_error):
    slack = 4.5 * data.fft_error + 2 * step_error["fft"] + ROUNDING
    assert (data.fft_mean <= data.fft_upper + slack).all()
    # half of it would not do, even where noise is least
    assert (data.fft_mean > 0.5 * data.fft_upper + slack).isel(fft_sigma=0, time=10)
    assert (data.fft_upper.isel(fft_sigma=-1, time=-1) > 10 * data.fft_mean.isel(fft_sigma=-1, time=-1)).all()


def test_localised_bound(data):
    assert (data.going_mean <= data.going_upper + 4.5 * data.going_error + ROUNDING).all()
    assert data.going_share[0] == 1
    assert data.going_share[-1] < 0.5
    # at time 0 the bound is attained
    assert data.going_mean[0] > 0.9 * data.going_upper[0]


def test_conserved_bounds(data):
    low, high = data.conserved.sel(side="lower"), data.conserved.sel(side="upper")
    slack = 1e-8
    assert (low - slack <= data.flow).all()
    assert (data.flow <= high + slack).all()
    assert (data.flow > 0.5 * high + slack).any()


def test_first_order():
    data = fig_width.compute(quick=True)
    gap = np.abs(data.order_mean - data.order_first)
    slack = 4.5 * data.order_error + 0.1 * np.abs(data.order_first).max()
    assert (gap <= slack).all()
    loud = {"order_sigma": -1}
    assert (np.abs(data.order_mean - 2 * data.order_first) > slack).isel(loud).any()
    # an estimate for little noise in all: it fails in the widest nets
    assert np.abs(data.wide_mean - data.wide_first)[0] <= 4.5 * data.wide_error[0] + 1e-3
    assert data.wide_first[-1] < 0 < data.wide_mean[-1] < 0.1
