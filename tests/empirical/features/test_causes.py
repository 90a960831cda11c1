"""What of a change the noise and the head cause."""

import numpy as np
import pytest
import xarray as xr

from empirical import causes


def runs(noise: float, head: float, both: float, seeds: int, rng: int = 0) -> list[xr.Dataset]:
    """Measures that fall in step by the given amounts, on a level and with a spread of each seed."""
    random = np.random.default_rng(rng)
    level = random.normal(0.8, 0.1, size=(seeds, 1))
    step = np.linspace(0, 1, 5)

    def of(change: float) -> xr.Dataset:
        values = level + change * step + random.normal(0, 0.01, size=(seeds, 5)) * (step > 0)
        coords = {"seed": range(seeds), "step": range(0, 50, 10)}
        return xr.Dataset({"knn_accuracy": (("seed", "step"), values)}, coords)

    return [of(noise + head + both), of(noise), of(head)]


def test_causes_are_found_within_their_errors():
    found = causes(*runs(-0.2, -0.05, 0.0, seeds=30))
    last = found.isel(step=-1)
    for name, expected in dict(total=-0.25, from_noise=-0.2, from_head=-0.05, interaction=0.0).items():
        assert abs(last[name] - expected) < 5 * last[f"{name}_error"]
        assert found[name].isel(step=0) == 0
        assert found[name].attrs["units"] == "1"
    # the seeds' levels, 0.1 apart, are no part of the errors: 0.01 for each run
    assert 0.5 < last["from_noise_error"] / (0.01 / np.sqrt(30)) < 1.5
    assert 0.5 < last["interaction_error"] / (0.01 * np.sqrt(3 / 30)) < 1.5
    # an interaction is seen when there is one
    other = causes(*runs(-0.2, -0.05, 0.1, seeds=30)).isel(step=-1)
    assert other["interaction"] > 5 * other["interaction_error"]


def test_the_parts_add_up():
    found = causes(*runs(-0.2, 0.1, 0.3, seeds=3))
    np.testing.assert_allclose(found.total, found.from_noise + found.from_head + found.interaction)


def test_training_that_helps_is_counted_once():
    # both controls gain 0.1 by training: noise costs 0.2 and the head 0.05
    run, zero, noiseless = runs(-0.1, 0.05, -0.1, seeds=30)
    neither = runs(0.1, 0.0, 0.0, seeds=30)[1]
    found = causes(run, zero, noiseless, neither=neither)
    last = found.isel(step=-1)
    expected = dict(total=-0.15, from_noise=-0.2, from_head=-0.05, interaction=0.0, from_training=0.1)
    for name, value in expected.items():
        assert abs(last[name] - value) < 5 * last[f"{name}_error"]
    parts = [found[name] for name in expected if name != "total"]
    np.testing.assert_allclose(found.total, sum(parts))
    # without that control the gain is part of an interaction
    bare = causes(run, zero, noiseless).isel(step=-1)
    assert bare.interaction < -5 * bare.interaction_error
    with pytest.raises(ValueError, match="run, zero_head, noiseless, neither must have the same steps"):
        causes(run, zero, noiseless, neither=neither.isel(seed=[0, 1]))


def test_one_seed_has_no_error_and_no_seed_has_none():
    single = causes(*runs(-0.2, 0.0, 0.0, seeds=1))
    assert np.isnan(single["from_noise_error"]).all()
    assert np.isfinite(single["from_noise"]).all()
    bare = causes(*(run.isel(seed=0, drop=True) for run in runs(-0.2, 0.0, 0.0, seeds=1)))
    assert list(bare) == ["total", "from_noise", "from_head", "interaction"]
    np.testing.assert_allclose(bare["total"], single["total"])


def test_runs_must_belong_together():
    run, zero, noiseless = runs(0, 0, 0, seeds=3)
    with pytest.raises(ValueError, match="same steps and seeds"):
        causes(run, zero.isel(seed=[0, 1]), noiseless)
    with pytest.raises(ValueError, match="same steps and seeds"):
        causes(run, zero, noiseless.assign_coords(step=noiseless.step + 1))
    with pytest.raises(ValueError, match="all be over seeds or none"):
        causes(run, zero, noiseless.isel(seed=0, drop=True))
    with pytest.raises(ValueError, match="zero_head must hold 'knn_accuracy' over step, got"):
        causes(run, zero.drop_vars("knn_accuracy"), noiseless)
    with pytest.raises(ValueError, match="select one of the rest"):
        causes(run.expand_dims(epsilon=[1.0]), zero, noiseless)
