"""The gains over full fine-tuning are paired by seed, and what was not measured is not drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from figures.study import fig_gains, fig_gains_real, studies


def accuracies() -> xr.DataArray:
    values = [[0.5, 0.7, 0.9], [0.6, 0.8, 0.9], [0.7, 0.9, 1.3]]
    return xr.DataArray(
        np.array(values)[:, None], {"share": [0.0, 0.5, 1.0], "epsilon": [1.0], "seed": [0, 1, 2]}
    )


def test_gains_are_paired_by_seed():
    data = fig_gains.gains(accuracies())
    assert data.share.values.tolist() == [0.5, 1.0]
    np.testing.assert_allclose(data.gain.sel(epsilon=1.0), [0.2 / 3, 0.8 / 3])
    # of the differences .1, .1, 0 and .2, .2, .4; errors of the accuracies themselves would be larger
    np.testing.assert_allclose(data.error.sel(epsilon=1.0), [0.1 / 3, 0.2 / 3])
    assert data.seeds == 3


def test_an_incomplete_seed_is_left_out():
    found = accuracies()
    more = found.pad(seed=(0, 1)).assign_coords(seed=[0, 1, 2, 3])
    assert more.isnull().any()
    xr.testing.assert_allclose(fig_gains.gains(more), fig_gains.gains(found))


def test_what_was_not_measured_is_not_drawn():
    data = fig_gains_real.compute()
    figure, axes = plt.subplots(1, data.sizes["task"])
    fig_gains.draw(axes, data)
    for ax, task in zip(axes, data.task.values, strict=True):
        gain = data.gain.sel(task=task)
        assert len(ax.containers) == int(gain.notnull().sum())
        assert len(ax.get_yticks()) == int(gain.notnull().any("share").sum())
        assert studies.title(task) == ax.get_title()
    assert any(data.gain.isnull().values.flat)
    plt.close(figure)


def test_the_legend_names_all_that_is_drawn():
    found = xr.concat([accuracies(), accuracies().assign_coords(epsilon=[3.0])], "epsilon")
    data = fig_gains.gains(found).expand_dims(task=["wine"])
    data["gain"] = data.gain.where((data.share < 1) | (data.epsilon > 1))
    figure, ax = plt.subplots()
    fig_gains.draw(ax, data)
    assert [text.get_text() for text in figure.legends[0].texts] == ["FFT", "LP-FFT, share 0.5", "LP"]
    plt.close(figure)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_caption_quotes_the_extremes_of_probing_alone(share):
    data = fig_gains.gains(accuracies()).expand_dims(task=["wine"])
    said = fig_gains.extremes(data.sel(share=[share]).assign_coords(share=[1.0]))
    assert said["most_at"] == said["least_at"] == "wine, epsilon 1"
    assert said["most"] == {0.5: "6.7 ± 3.3", 1.0: "26.7 ± 6.7"}[share]
