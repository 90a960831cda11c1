"""The forecast of probing: what the caption says of the committed runs, and of the loss along the steps."""

import numpy as np
import pytest
from scipy.stats import t

from figures.study import fig_forecast, study_forecast

SURE = 1e-4


@pytest.fixture(scope="module")
def data():
    return fig_forecast.collect(fig_forecast.compute(quick=True))


def test_the_chain_has_the_expected_loss_and_the_diffusion_is_too_low(data):
    error = data.run_error[1:]
    assert (abs(data.run - data.chain)[1:] < 4.5 * error).all()
    assert (data.diffusion - data.run)[-1] < -4.5 * error[-1]


@pytest.mark.parametrize("name", ["test_loss", "test_accuracy"])
def test_dpsgd_reaches_the_forecast(data, name):
    runs, expected = data[name], data[f"forecast_{name}"]
    seeds = runs.sizes["seed"]
    scores = abs(runs.mean("seed") - expected) / (runs.std("seed", ddof=1) / seeds**0.5)
    assert float(scores.max()) < t.isf(SURE / 2, seeds - 1)
    # negative control: the forecasts of other budgets are told apart
    other = abs(runs.mean("seed") - expected.roll(epsilon=1)) / (runs.std("seed", ddof=1) / seeds**0.5)
    assert float(other.median()) > t.isf(SURE / 2, seeds - 1)


def test_hardly_any_gradient_is_clipped(data):
    assert data.valid.all()
    assert (data.forecast_clipped <= 0.01).all()
    assert (data.clipped.mean("seed") < 0.012).all()


def test_a_small_study_has_the_committed_form(data):
    rng = np.random.default_rng(0)
    y, y_test = np.arange(300) % 3, np.arange(90) % 3
    A, A_test = (3 * np.eye(3, 5)[c] + rng.standard_normal((len(c), 5)) for c in (y, y_test))
    made = study_forecast.measure((A, y, A_test, y_test), seeds=2, epsilons=(3.0,))
    assert set(made.data_vars) <= set(data.data_vars)
    assert float(made.test_accuracy.min()) > 0.5
