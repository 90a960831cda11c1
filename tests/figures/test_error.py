"""The measured distances of the figure lie below their bounds."""

import pytest

from figures.theory import fig_error


@pytest.fixture(scope="module")
def data():
    return fig_error.compute(quick=True)


SWEEPS = ["time", *fig_error.SWEEPS]


def violated(data, sweep, kind, scale=1.0):
    """Where a bound is below what was measured by more than its error; LP's chain is exact at any step."""
    bound = scale * data[f"{sweep}_bound"].sel(kind=kind)
    return data[f"{sweep}_measured"] - 4 * data[f"{sweep}_error"] > bound


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("kind", list(fig_error.KINDS))
def test_measured_is_below_the_bounds(data, sweep, kind):
    assert not violated(data, sweep, kind).any()


@pytest.mark.parametrize(("trained", "kind"), [("lp", "monotone"), ("fft", "ode")])
def test_smaller_bounds_are_violated(data, trained, kind):
    # wide nets leave the sharp bounds no room
    assert violated(data, "width", kind, scale=0.75).sel(trained=trained)[-1]


def test_what_the_caption_says(data):
    ratio = data.sigma_bound / data.sigma_measured
    assert (ratio.sel(kind="paper", sigma=ratio.sigma.min()) > 100).all()
    late = (data.time_bound / data.time_measured).sel(trained="fft").isel(time=-1)
    assert late.sel(kind="paper") > 5 * late.sel(kind="ode")
    for sweep in ("width", "dim"):
        tight = (data[f"{sweep}_bound"] / data[f"{sweep}_measured"]).sel(trained="fft")
        assert (tight.isel({sweep: -1}) < 0.5 * tight.isel({sweep: 0})).all()
