"""What the figure of the budget says of itself holds in its data."""

import numpy as np
import pytest

from figures.theory import fig_budget


@pytest.fixture(scope="module")
def data():
    return fig_budget.collect(fig_budget.compute(quick=True))


def test_probing_needs_a_larger_share_of_a_smaller_budget(data):
    assert (np.diff(data.minimum) < 0).all()
    # the bound is above what the flow needs, and not by much
    assert (data.minimum > data.flow).all()
    assert (data.minimum < 2 * data.flow).all()
    assert data.minimum[0] > 1 > data.minimum[-1]


def test_the_least_loss_is_without_probing(data):
    for name in ("loss", "dpsgd"):
        assert (data[name].idxmin("share") == 0).all()
    at = data.sel(epsilon=fig_budget.DRAWN[0])
    assert at.loss[0] + 4 * at.error[0] < at.loss[-1] - 4 * at.error[-1]


def test_noise_lowers_the_loss_of_full_fine_tuning_below_its_approximation(data):
    at = data.sel(epsilon=fig_budget.DRAWN[0])
    low, high = at.sandwich
    assert (low <= high).all()
    assert at.loss[0] + 4 * at.error[0] < low[0]
    # but not that of probing
    assert at.loss[-1] + 4 * at.error[-1] > low[-1]
