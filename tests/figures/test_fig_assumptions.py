"""Real data and the assumptions: where the theory's conclusions hold and where they fail."""

import numpy as np
import pytest

from figures.theory import fig_assumptions
from langevin import Weights, collapsed_features, orthogonally_separable


@pytest.fixture(scope="module")
def data():
    return fig_assumptions.compute(quick=True)


def test_data_made_to_meet_the_assumptions(data):
    made = data.sel(kind="synthetic")
    assert made.violations.max() == 0
    assert made.wrong_side.max() == 0
    assert (made.collapsed == 1).all()
    conclusions = [made[name].item() for name in ("misaligned_fall", "aligned_fall", "probed_fall")]
    assert conclusions == [1, 0, 0]


def test_real_data_do_not(data):
    real = data.drop_sel(kind="synthetic")
    assert (real.collapsed < 0.05).all()
    assert (real.violations.sum("pairs") > 0.1).all()
    centred = [kind for kind in real.kind.values if kind.endswith("centred")]
    assert (real.misaligned_fall.sel(kind=centred) == 1).all()
    assert (real.aligned_fall.sel(kind=centred) == 0).all()
    assert (real.drop_sel(kind=centred).misaligned_fall < 1).all()
    assert (real.probed_fall > 0.03).all()


def test_features_fall_by_the_sign_of_their_head():
    problem = orthogonally_separable(20, 4, rng=0)
    weights = collapsed_features(problem, 8, rng=0)
    own = np.where(np.arange(8) % 2 == 0, 1.0, -1.0)
    for wrong in (2, 5):
        v = own * np.where(np.arange(8) < wrong, -0.1, 0.1)
        found = fig_assumptions.behaviour(problem, Weights(weights.W, v))
        assert (found["misaligned_fall"], found["aligned_fall"], found["probed_fall"]) == (1, 0, 0)
