"""Each preset shows what its sentences say."""

import re
from dataclasses import replace

import numpy as np
import pytest

from explorer.presets import PRESETS, _count, _heads, response
from explorer.views import draw

BY_KEY = {preset.key: preset for preset in PRESETS}


@pytest.fixture(scope="module")
def shown():
    return {key: draw(preset.simulation) for key, preset in BY_KEY.items()}


def end(views, name):
    """Mean number of neurons at the end, its standard error, and the number without noise."""
    curve, width = views.curves[name], views.weights.width
    return curve.mean[-1] * width, curve.error[-1] * width, curve.zeroth[-1] * width


def test_misaligned_heads_distort_and_probing_prevents_it(shown):
    mean, error, zeroth = end(shown["misaligned"], "distorted")
    assert zeroth > 0
    after, after_error, after_zeroth = end(shown["probing"], "distorted")
    assert after_zeroth == 0
    assert mean - after > 4 * np.hypot(error, after_error)


def test_the_bound_on_survivors_holds(shown):
    views = shown["misaligned"]
    found = views.theorems.distortion
    sure = found.misaligned & found.survives
    assert 0 < sure.sum() < found.misaligned.sum()
    lowest = response(views, views.plane.zeroth)[:, sure].min()
    guaranteed, measured = (
        float(n) / 100 for n in re.findall(r"(\d+)%", BY_KEY["misaligned"].says(views)[2])
    )
    assert guaranteed <= lowest < 1
    assert measured == pytest.approx(lowest, abs=0.005)


def test_probing_lasts_until_all_heads_are_aligned(shown):
    for key in ("probing", "noise", "budget"):
        views = shown[key]
        assert views.theorems.alignment.sharp <= views.probing
        at = np.searchsorted(views.times, views.theorems.alignment.sharp)
        assert (views.curves["misaligned"].zeroth[at:] == 0).all()


def test_noise_distorts_although_heads_are_aligned(shown):
    mean, error, zeroth = end(shown["noise"], "distorted")
    assert zeroth == 0
    assert mean > 4 * error + 0.25 * shown["noise"].weights.width


def test_a_zero_head_distorts_nothing(shown):
    views = shown["zero"]
    assert views.counts["first_misaligned"] == 0
    assert views.curves["distorted"].zeroth.max() == 0
    assert end(views, "distorted")[0] < 1


def test_a_small_budget_is_small_and_half_of_it_is_too_little(shown):
    views = shown["budget"]
    assert views.epsilon[-1] <= 1
    said = BY_KEY["budget"].says(views).theorem
    whole, half = (int(n) for n in re.findall(r"(\d+)%", said))
    assert whole < 100 < half
    assert views.probing / views.schedule.duration >= views.theorems.alignment.time / views.schedule.duration


@pytest.mark.parametrize("key", BY_KEY)
def test_sentences_hold_the_numbers_of_their_run(key):
    preset = BY_KEY[key]
    few = draw(replace(preset.simulation, paths=2, width=20, seed=3), quick=True)
    said, other = preset.says(few), preset.says(draw(preset.simulation, quick=True))
    assert all(sentence.endswith(".") for sentence in said)
    assert "of 20 " in " ".join(said)
    assert said.second != other.second


def test_mean_numbers_are_rounded_as_in_the_readout():
    # ties go up: means over 16 paths often are ties
    assert [_count(number) for number in (4.125, 4.375, 0.0625, 12.0, 0.0)] == [
        "4.13",
        "4.38",
        "0.0625",
        "12",
        "0",
    ]
    assert (_heads(1.0), _heads(0.5)) == ("1 head starts", "0.5 heads start")
