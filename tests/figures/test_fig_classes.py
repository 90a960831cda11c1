"""Ten classes: a zero head distorts nothing without noise, and fewer neurons than a Gaussian one with it."""

import pytest

from figures.theory import fig_classes


@pytest.fixture(scope="module")
def data():
    return fig_classes.compute(quick=True)


def test_a_zero_head_distorts_nothing_without_noise(data):
    assert (data.flow_distorted.sel(run="zero") == 0).all()
    assert data.flow_distorted.sel(run="gaussian")[-1] > 0.15
    assert data.flow_distorted.sel(run="probed")[-1] < 0.02


def test_with_noise_probing_first_distorts_fewest(data):
    end = data.distorted.isel(time=-1)
    probed, zero, gaussian = (float(end.sel(run=run)) for run in ("probed", "zero", "gaussian"))
    assert 0 < probed < 0.6 * zero < 0.6 * 0.6 * gaussian


def test_the_flow_is_between_its_bounds(data):
    low, high = data.sandwich.sel(side="lower"), data.sandwich.sel(side="upper")
    assert data.sandwich.sel(run="zero").notnull().all()
    assert data.sandwich.sel(run="small").notnull().all()
    assert ((data.flow_loss >= low * (1 - 1e-6)) | low.isnull()).all()
    assert ((data.flow_loss <= high * (1 + 1e-6)) | high.isnull()).all()
    # the bounds of the zero head nearly meet, those of the Gaussian head of the other panels do not hold
    assert float((high / low).sel(run="zero").max()) < 1.1
    assert data.sandwich.sel(run="gaussian").isnull().mean() > 0.9
