"""Sections 4b and 4b' in linear probing: what each sample has of the clock, along flows of a single class."""

import itertools

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import softmax

import bounds
from bounds.features.classes import decouple_classes
from bounds.loss import enclosure
from bounds.loss.enclosures import clocked
from bounds.loss.enclosures.clocked import Clocked
from langevin.model.schedule import Phase, Schedule
from tests.theory import strategies
from tests.theory.test_sandwich_outputs import simulated


def drawn(seed, heads):
    """A random problem and weights, and a phase of linear probing."""
    rng = np.random.default_rng(seed)
    problem, weights = strategies.classes(rng, K=(3, 5, 10)[seed % 3], heads=heads)
    clip = None if rng.random() < 0.3 else float(np.exp(rng.uniform(-2, 1)))
    clipping = "margin" if clip and heads == "any" and rng.random() < 0.4 else "flat"
    return problem, weights, Phase("lp", float(np.exp(rng.uniform(-1, 2))), clip=clip, clipping=clipping)


def parts(block, phase):
    """What the samples have of the clock at the end of a phase, from the definition."""
    shape, own = block.V.shape, np.eye(block.classes)[block.own]

    def rate(_, y):
        R = softmax(block.Z.T @ y[: block.V.size].reshape(shape), axis=1) - own
        length = np.sqrt(2) * np.abs(R @ own) if phase.clipping == "margin" else np.linalg.norm(R, axis=1)
        size = length * np.linalg.norm(block.Z, axis=0)
        c = np.ones(len(R)) if phase.clip is None else np.minimum(1.0, phase.clip / size)
        return np.concatenate([-(block.Z @ (c[:, None] * R)).ravel(), -c * (R @ own)])

    start = np.concatenate([block.V.ravel(), np.zeros(block.Z.shape[1])])
    found = solve_ivp(rate, (0, phase.time), start, rtol=1e-9, atol=1e-12).y
    return found[block.V.size :, -1], -rate(0.0, start)[block.V.size :]


def forms(problem, weights):
    """Enclosures by clock, and their blocks."""
    for block in decouple_classes(problem, weights)[0]:
        form = enclosure._form(problem, block)
        if isinstance(form, Clocked) and len(block.neurons):
            yield form, block


@pytest.mark.parametrize("heads", ["any", "symmetric"])
def test_each_sample_has_its_part_of_the_clock(heads):
    """And, as a control, not the part that it has at the start: the samples that learn fast fall behind."""
    known, frozen = [], False
    for seed in range(18):
        problem, weights, phase = drawn(seed, heads)
        for form, block in forms(problem, weights):
            true, start = parts(block, phase)
            form.prepare(phase)
            S = true.sum()
            spent = form.spent(phase, np.array([S]))[0]
            assert (spent <= true + 1e-7 * S).all(), seed
            known.append(spent.sum() / S)
            frozen |= bool((-start * S > true * -start.sum() * (1 + 1e-2)).any())
    assert frozen
    assert np.median(known) > 0.6


def test_the_band_lies_within_that_of_any_parts(monkeypatch):
    """A margin then moves by the least or the largest product of its sample with any other."""
    plain, ratios = Clocked.spent, []
    for seed in range(12):
        problem, weights, phase = drawn(seed, "any")
        given = problem, weights, Schedule([phase]), np.linspace(0, phase.time, 5)
        band = bounds.sandwich(*given)
        assert band.contains(*simulated(*given))
        monkeypatch.setattr(Clocked, "spent", lambda self, _, S: np.zeros((len(S), len(self.m_low))))
        wide = bounds.sandwich(*given)
        # as with more samples than parts are bounded for
        monkeypatch.setattr(Clocked, "spent", plain)
        with monkeypatch.context() as patch:
            patch.setattr(clocked, "MANY", 0)
            many = bounds.sandwich(*given)
        np.testing.assert_array_equal(many.upper, wide.upper)
        np.testing.assert_array_equal(many.lower, wide.lower)
        assert (band.upper <= wide.upper * (1 + 1e-6)).all()
        assert (band.lower >= wide.lower * (1 - 1e-6)).all()
        widths = [np.log(one.upper[-1] / one.lower[-1]) for one in (band, wide)]
        ratios.append(widths[0] / widths[1])
    assert np.median(ratios) < 0.5


def test_speeds_at_the_wrong_ends_are_seen(monkeypatch):
    """A sample is slowest at the end of a part of the clock, where its margin is largest."""
    speed, calls = Clocked.speed, itertools.count()

    def swapped(self, phase, m, size):
        # every other call is for the slowest
        return speed(self, phase, np.broadcast_to(self.m_low, m.shape) if next(calls) % 2 == 0 else m, size)

    broken = 0
    for seed in range(18):
        problem, weights, phase = drawn(seed, "any")
        for form, block in forms(problem, weights):
            true, _ = parts(block, phase)
            form.prepare(phase)
            with monkeypatch.context() as patch:
                patch.setattr(Clocked, "speed", swapped)
                spent = form.spent(phase, np.array([true.sum()]))[0]
            broken += bool((spent > true + 1e-7 * true.sum()).any())
    assert broken > 5
