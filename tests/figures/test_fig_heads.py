"""Heads: at zeroth order aligned ones distort nothing and random ones do; the noise distorts under all."""

import numpy as np
import pytest

from figures.study import fig_heads
from langevin import collapsed_features, orthogonally_separable


@pytest.fixture(scope="module")
def data():
    return fig_heads.collect(fig_heads.compute(quick=True))


def test_aligned_heads_distort_nothing_without_noise(data):
    aligned, random = ["zero", "prototype"], ["small", "default", "large"]
    assert data.flow_distorted.sel(head=aligned).max() == 0
    assert data.flow_misaligned.sel(head=aligned).max() == 0
    assert (data.flow_distorted.sel(head=random).max("time") > 0.3).all()
    # the smaller the head, the fewer neurons stay distorted
    end = data.flow_distorted.sel(head=random)[:, -1].values
    assert (np.diff(end) > 0).all()


def test_noise_distorts_under_every_head(data):
    assert (data.distorted[:, 1:] > 0.1).all()
    assert data.distorted.sel(head="prototype")[-1] < data.distorted.sel(head="default")[-1]


def test_what_the_caption_says_of_dpsgd(data):
    fft = data.sel(arm="fft")
    low = fft.sel(epsilon=0.3)
    found = [round(100 * float(low.gain.sel(head=head)), 1) for head in ("zero", "prototype")]
    assert found == [3.0, 4.6]
    large = data.gain.sel(head="large", epsilon=0.3, arm=["fft", "lp-fft 0.5"])
    assert (100 * large).round(1).values.tolist() == [-5.0, -11.2]
    assert (low.gain > 2 * low.gain_error).sel(head=["zero", "prototype"]).all()
    assert (fft.gain < fft.gain_error).sel(epsilon=[1, 3]).drop_sel(head="default").all()
    probed = data.accuracy.sel(arm="lp-fft 0.5", epsilon=0.3, head="default")
    assert low.accuracy.sel(head="prototype") > probed > low.accuracy.sel(head="zero")


def test_heads():
    problem = orthogonally_separable(20, 4, rng=0)
    W = collapsed_features(problem, 8, rng=0).W
    made = {head: fig_heads.start(head, problem, W, 3) for head in fig_heads.HEADS}
    assert np.allclose(made["large"], 16 * made["small"])
    assert not made["zero"].any()
    own = np.where(np.arange(8) % 2 == 0, 1, -1)
    assert (own * made["prototype"] > 0).all()
    assert not (own * made["default"] > 0).all()
