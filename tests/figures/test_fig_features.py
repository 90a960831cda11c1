"""What the caption on features says of the committed measurements; each cause read from its control."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from figures.study import fig_features
from figures.study.study_features import RUNS, TUNED
from langevin.store import files


@pytest.fixture(scope="module")
def data():
    return fig_features.compute()


def test_the_noise_distorts_and_the_head_does_not(data):
    end = data.isel(step=-1).sel(epsilon=0.3)
    assert round(100 * float(end.total.sel(head="default")), 1) == -4.0
    for head in end["head"].values:
        at = end.sel(head=head)
        assert round(100 * float(at.from_noise), 1) == -3.8
        assert at.from_noise < -10 * at.from_noise_error
        # the head alone does not lower the accuracy
        assert at.from_head > 0
    assert abs(end.change.sel(run="lp-fft")) < end.change_error.sel(run="lp-fft")


def test_without_noise_features_get_better(data):
    free = data.sel(epsilon=1.0)
    dip = free.sel(run="fft, large head, no noise").isel(step=slice(1, None))
    assert (dip.change > -dip.change_error).all()
    for run in ("fft, no noise", "fft, zero head, no noise"):
        assert free.change.sel(run=run)[-1] > 2 * free.change_error.sel(run=run)[-1]
    assert free.change.sel(run="fft")[-1] < -2 * free.change_error.sel(run="fft")[-1]


def test_each_cause_is_read_from_its_own_control(monkeypatch):
    def fake(path):
        """Runs that lose 1 point for each letter of their name, and the rates that they were tuned to."""
        if path.name == Path(TUNED).name:
            arms = {"arm": ["fft", "lp-fft 0.5"], "epsilon": [0.3, 1.0]}
            return xr.Dataset({"lr": xr.DataArray(np.ones((2, 2)), arms, list(arms))})
        losses = xr.DataArray([len(name) for name in RUNS], dims="run", coords={"run": list(RUNS)})
        step = xr.DataArray([0.0, 1.0], dims="step", coords={"step": [0, 1]})
        grid = (0.9 - 0.01 * losses * step).expand_dims(seed=[0, 1], epsilon=[0.3, 1.0])
        grid.attrs["long_name"] = "accuracy"
        return xr.Dataset({"knn_accuracy": grid}, attrs={"machine": "none"})

    monkeypatch.setattr(files, "load", fake)
    end = fig_features.compute().isel(step=-1, epsilon=0)
    found = {
        name: (-100 * end[name]).round(6).values.tolist() for name in ("total", "from_noise", "from_head")
    }
    assert found["total"] == [len("fft"), len("fft, large head")]
    assert found["from_noise"] == [len("fft, zero head")] * 2
    assert found["from_head"] == [len("fft, no noise"), len("fft, large head, no noise")]
    assert np.allclose(end.total_error, 0)
