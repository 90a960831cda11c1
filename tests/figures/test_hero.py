"""The moving picture is what a run gives, small, self-contained, and still for those who prefer it."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from figures import hero
from figures.theory import fig_neurons
from langevin import euler_maruyama

NUMBER = re.compile(r"-?\d+\.\d+")
SIDES = hero.walks()


def test_the_kept_picture_is_what_the_script_draws():
    kept, made = hero.OUT.read_text(encoding="utf8"), hero.svg(SIDES)
    assert NUMBER.sub("", kept) == NUMBER.sub("", made)
    # places are written to a tenth, which another processor may round the other way
    kept, made = ([float(x) for x in NUMBER.findall(text)] for text in (kept, made))
    assert np.allclose(kept, made, rtol=0, atol=0.11)


@pytest.mark.parametrize("side", SIDES, ids=[side.method for side in SIDES])
def test_it_shows_a_run_of_the_solver(side):
    problem, weights = hero.scene()
    times = fig_neurons.DT * np.rint(np.linspace(0, hero.TIME / fig_neurons.DT, hero.FRAMES))

    def counts(seed):
        how: dict[str, Any] = dict(dt=fig_neurons.DT, paths=1, rng=seed, times=times, reduce="none")
        run = euler_maruyama(problem, weights, side.schedule, **how)
        return len(weights.v) * run.distorted[0].values, len(weights.v) * (1 - run.misaligned[0].values)

    distorted, aligned = counts(0)
    assert np.array_equal(side.distorted.sum(1), np.rint(distorted))
    assert np.array_equal(side.aligned.sum(1), np.rint(aligned))
    # another path is not what is shown
    assert not np.array_equal(side.distorted.sum(1), np.rint(counts(1)[0]))


def test_it_shows_the_claim():
    fft, probed = SIDES
    assert fft.distorted[-1].sum() > 4 * probed.distorted[-1].sum()
    assert probed.aligned[-1].all()
    assert not fft.aligned[-1].all()


def test_it_is_small_self_contained_and_can_stand_still():
    text = hero.OUT.read_text(encoding="utf8")
    assert len(text) < 300_000
    assert not re.search(r"<script|href|url\(|@import", text)
    root = ET.fromstring(text)
    assert root.find("{*}title") is not None
    moving = {word for element in root.iter() for word in element.get("class", "").split()} - {"title"}
    still = re.search(r"prefers-reduced-motion: reduce\) \{(.*?)\{ animation: none", text)
    assert still is not None
    assert {f".{name}" for name in moving} | {"#now"} == set(still[1].replace(",", " ").split())
    # each animation has its rule, and each rule its use
    rules = re.findall(r"@keyframes (\S+?)\{", text)
    assert sorted(rules) == sorted(re.findall(r"animation-name:(\S+?)\"", text))
    # without motion it shows the end
    shown = [e.text for e in root.findall(".//{*}text") if e.get("opacity") == "1"]
    assert shown[0] == f"{SIDES[0].distorted[-1].sum()} of 12 neurons distorted"
