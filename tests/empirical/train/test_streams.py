"""Batches and noise: their law, and that nothing but key, stage and step decides them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from empirical.train.streams import Streams

SAMPLES, RATE, STEPS = 400, 0.1, 300


def test_draws_depend_on_key_stage_and_step_alone() -> None:
    one, two = Streams(5), Streams(5)
    two.batch(0, 0, SAMPLES, RATE)  # what was drawn before does not matter
    assert np.array_equal(one.batch(1, 7, SAMPLES, RATE), two.batch(1, 7, SAMPLES, RATE))
    assert torch.equal(one.noise(1, 7, 50, torch.float32), two.noise(1, 7, 50, torch.float32))
    assert torch.equal(one.noise(1, 7, 50, torch.float32)[:20], two.noise(1, 7, 20, torch.float32))
    for other in ((1, 8), (0, 7)):
        assert not torch.equal(one.noise(*other, 50, torch.float32), one.noise(1, 7, 50, torch.float32))
        assert not np.array_equal(one.batch(*other, SAMPLES, RATE), one.batch(1, 7, SAMPLES, RATE))
    assert not torch.equal(Streams(6).noise(1, 7, 50, torch.float32), one.noise(1, 7, 50, torch.float32))


def _counts(rate: float) -> np.ndarray:
    streams = Streams(0)
    counts = np.zeros(SAMPLES)
    for step in range(STEPS):
        counts[streams.batch(0, step, SAMPLES, rate)] += 1
    return counts


def _fits(counts: np.ndarray, rate: float) -> bool:
    """Whether samples are drawn independently at a rate: total, and spread over samples."""
    total = stats.binomtest(int(counts.sum()), SAMPLES * STEPS, rate).pvalue
    dispersion = ((counts - STEPS * rate) ** 2).sum() / (STEPS * rate * (1 - rate))
    spread = stats.chi2(SAMPLES).cdf(dispersion)
    return bool(total > 1e-3 and 1e-3 < spread < 1 - 1e-3)


def test_batches_are_poisson() -> None:
    counts = _counts(RATE)
    assert _fits(counts, RATE)
    assert not _fits(counts, 1.1 * RATE)
    # batches of one size have no spread
    sizes = [len(Streams(0).batch(0, step, SAMPLES, RATE)) for step in range(STEPS)]
    expected = SAMPLES * RATE * (1 - RATE)
    chi2 = stats.chi2(STEPS - 1).cdf((STEPS - 1) * np.var(sizes, ddof=1) / expected)
    assert 1e-3 < chi2 < 1 - 1e-3
    assert len(Streams(0).batch(0, 0, SAMPLES, 1.0)) == SAMPLES


def test_noise_is_standard_normal_and_fresh_in_each_step() -> None:
    streams = Streams(0)
    draws = [streams.noise(0, step, 2000, torch.float64).numpy() for step in range(10)]
    pooled = np.concatenate(draws)
    assert stats.kstest(pooled, "norm").pvalue > 1e-3
    assert stats.kstest(1.1 * pooled, "norm").pvalue < 1e-3
    # correlations of two steps have standard error 1/sqrt(2000)
    correlations = np.corrcoef(draws)[np.triu_indices(10, 1)]
    assert np.abs(correlations).max() * np.sqrt(2000) < stats.norm.isf(1e-3 / (2 * len(correlations)))
    assert abs(np.corrcoef(draws[0], draws[0] + draws[1])[0, 1]) * np.sqrt(2000) > 10
