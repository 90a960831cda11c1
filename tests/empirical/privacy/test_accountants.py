"""The accountants at their edges: right values from closed forms, bounds that hold, work that is bounded."""

import math
from dataclasses import replace

import numpy as np
import pytest

import bounds
from bounds.privacy import noise, subsampled
from empirical.privacy import spent
from empirical.privacy.calibrate import calibrate
from empirical.privacy.history import History, Mechanism, plan, release
from empirical.privacy.prv import prv
from empirical.privacy.report import account
from empirical.privacy.spent import delta, epsilon

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

FULL = History([Mechanism("a", 1.0, 100, 20.0)], delta=1e-16)
SAMPLED = History([Mechanism("a", 0.1, 100, 2.0)], delta=1e-15)
RARE = History([Mechanism("a", 1e-6, 10**6, 1.0)], delta=1e-5)


def one(rate: float, steps: int, nu: float, delta: float) -> History:
    return History([Mechanism("a", rate, steps, nu)], delta=delta)


@pytest.mark.parametrize("accountant", ["prv", "pld", "gdp"])
@pytest.mark.parametrize(
    ("steps", "nu", "delta", "right"),
    [
        (100, 20.0, 1e-16, 4.061833),
        (1, 2.0, 1e-16, 4.061833),
        (1, 1e-3, 1e-5, bounds.gdp_epsilon(1e3, 1e-5)),
        (10**15, 1e7, 1e-300, bounds.gdp_epsilon(math.sqrt(10), 1e-300)),
        (1, 1.0, 0.999, 0.0),
        (1, 1e200, 1e-30, 0.0),
        (1, 1e-200, 1e-30, math.inf),
    ],
)
def test_full_batches_are_exact_everywhere(accountant, steps, nu, delta, right):
    history = one(1.0, steps, nu, delta)
    assert epsilon(history, accountant=accountant) == pytest.approx(right, rel=1e-6)
    # negative control: a hundredth more noise
    if 0 < right < math.inf:
        assert epsilon(one(1.0, steps, 1.01 * nu, delta), accountant=accountant) < right * (1 - 1e-3)


@pytest.mark.parametrize("mu", [0.1, 1.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_the_composed_accountants_agree_with_the_closed_form(mu):
    exact, events = bounds.gdp_epsilon(mu, 1e-5), {(1 / mu, 1.0): 1}
    assert exact <= prv(events, 1e-5, 1e-3) <= exact + 0.0025
    assert exact - 1e-9 <= subsampled.pld_epsilon(events, 1e-5) <= exact + 2e-4
    # negative control: a hundredth more noise
    assert subsampled.pld_epsilon({(1.01 / mu, 1.0): 1}, 1e-5) < exact


def test_rare_draws_of_little_noise_keep_the_grid_small():
    """Half a million steps that draw a sample 600 times, each of which tells it apart."""
    found = epsilon(one(0.0012, 504_408, 0.2442, 2.7e-9), accountant="pld")
    assert 1e3 < found < bounds.gdp_epsilon(math.sqrt(504_408) / 0.2442, 2.7e-9)


def test_beyond_rounding_pld_gives_the_bound_of_renyi():
    found = epsilon(SAMPLED, accountant="pld")
    # by dp-accounting's RDP on its own orders
    assert epsilon(replace(SAMPLED, delta=1e-12), accountant="pld") < found <= 5.2656
    assert epsilon(replace(SAMPLED, delta=1e-300), accountant="pld") < math.inf
    assert 0 < delta(SAMPLED, 8.0) < 1e-20
    # negative control: the composed distribution alone knows no such delta
    assert subsampled.pld({(2.0, 0.1): 100}).get_epsilon(1e-15) == math.inf


@pytest.mark.parametrize(("steps", "mu"), [(100, 3.3), (1000, 1.0), (1000, 5.0), (10_000, 5.0)])
def test_rounding_of_composed_distributions_is_bounded(steps, mu):
    """A Gaussian composed step by step, against its closed form at a delta that rounding reaches."""
    from dp_accounting.pld import privacy_loss_distribution

    nu, least = math.sqrt(steps) / mu, 1e-13
    step = privacy_loss_distribution.from_gaussian_mechanism(nu, value_discretization_interval=1e-4)
    found = step.self_compose(steps).get_delta_for_epsilon(bounds.gdp_epsilon(mu, least))
    allowed = subsampled.rounding({(nu, 1.0): steps})
    # the grid's own error, an upper bound, is relative
    assert abs(found - least) <= allowed + 1e-2 * least
    # negative control: the delta of another mu is distinguished
    other = step.self_compose(steps).get_delta_for_epsilon(bounds.gdp_epsilon(0.5 * mu, 1e-6))
    assert abs(other - least) > allowed + 1e-2 * least


@pytest.mark.parametrize(
    ("history", "accountant"),
    [
        (one(0.1, 100, 2.0, 0.999), "prv"),
        (one(0.1, 100, 1.0, 0.99), "pld"),
        (one(1e-7, 1000, 1.0, 1e-5), "prv"),
        (one(1e-7, 1000, 1.0, 1e-5), "pld"),
        (one(1e-12, 10, 1e-3, 1e-10), "pld"),
    ],
)
def test_epsilon_is_zero_from_the_total_variation_on(history, accountant):
    assert epsilon(history, accountant=accountant) == 0.0


@pytest.mark.parametrize(("rate", "steps", "nu"), [(1.0, 1, 1.0), (0.1, 1, 0.7), (1.0, 400, 50.0)])
def test_the_bound_on_total_variation(rate, steps, nu):
    exact = rate * bounds.gdp_delta(math.sqrt(steps) / nu, 0.0)
    found = subsampled.total_variation({(nu, rate): steps})
    assert exact <= found <= 1.6 * exact
    # negative control: it is a bound for no larger distance
    assert found < 2 * exact


def test_a_grid_of_losses_as_fine_as_a_step():
    """PRV, which takes half a minute here, says .0037 with its error of .001; the normal limit is .00267."""
    found = epsilon(RARE, accountant="pld")
    assert 0.00267 < found < 0.0037
    # negative control: on the usual grid every loss is rounded up
    assert subsampled.pld({(1.0, 1e-6): 10**6}, 1e-4).get_epsilon(1e-5) > 0.02


def test_prv_says_what_it_would_take_and_pld_answers_alone():
    with pytest.raises(ValueError, match=r"PRV accountant would take .* s, at eps_error=.* accountant='pld'"):
        epsilon(RARE)
    report = account(RARE)
    assert report.epsilon_prv is None
    assert report.epsilon == report.epsilon_pld == epsilon(RARE, accountant="pld")
    assert "(PRV" not in str(report)
    assert "no PRV: the PRV accountant would take" in str(report)
    with pytest.raises(ValueError, match=r"delta=1e-15 is out of the PRV accountant's reach"):
        epsilon(SAMPLED)
    assert account(SAMPLED).epsilon_prv is None


@pytest.mark.parametrize(
    "seed", [*range(2, 5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2))]
)
def test_epsilon_is_monotone_and_below_every_other_bound(seed):
    """At random corners: more delta and more noise spend less, more steps and a higher rate more."""
    rng = np.random.default_rng(seed)
    rate, steps = float(10 ** rng.uniform(-6, -0.3)), int(10 ** rng.uniform(0, 4))
    nu, least = float(10 ** rng.uniform(-0.15, 1.5)), float(10 ** rng.uniform(-14, -2))
    here = one(rate, steps, nu, least)
    less = [one(rate, steps, 1.3 * nu, least), one(rate, steps, nu, min(3 * least, 0.9))]
    less += [one(rate / 2, steps, nu, least)] + ([one(rate, steps // 2, nu, least)] if steps > 1 else [])
    found = epsilon(here, accountant="pld")
    events = {(nu, rate): steps}
    assert 0 <= found <= bounds.gdp_epsilon(math.sqrt(steps) / nu, least)
    assert found <= subsampled.renyi_epsilon(events, least) + 1e-9
    for other in less:
        assert epsilon(other, accountant="pld") <= found + 1e-9
    assert delta(here, found) <= least * (1 + 1e-2)
    # negative control: more of it all spends more
    assert epsilon(one(min(2 * rate, 0.99), 4 * steps, nu / 2, least / 10), accountant="pld") > found


def test_a_mixed_history_spends_between_its_parts_and_their_full_batches():
    parts = [release("prototypes", 5.0), Mechanism("fft", 0.05, 200, 1.5)]
    both = History(parts, delta=1e-14)
    alone = [epsilon(replace(both, mechanisms=[part]), accountant="pld") for part in parts]
    assert (
        max(alone)
        < epsilon(both, accountant="pld")
        < bounds.gdp_epsilon(math.hypot(0.2, 200**0.5 / 1.5), 1e-14)
    )
    shared = replace(both, delta=1e-6)
    assert epsilon(shared) == pytest.approx(epsilon(shared, accountant="pld"), abs=2e-3)


@pytest.mark.parametrize(
    ("target", "planned"),
    [
        (5.0, plan(1000, 100, delta=1e-4, steps=20)),
        pytest.param(20.0, plan(1000, 100, delta=1e-4, steps=20), marks=pytest.mark.slow),
        pytest.param(50.0, plan(1000, 100, delta=1e-4, steps=100), marks=pytest.mark.slow),
        pytest.param(100.0, plan(1000, 100, delta=1e-4, steps=100), marks=pytest.mark.slow),
        pytest.param(1.0, plan(1000, 100, delta=0.9, steps=100), marks=pytest.mark.slow),
        (100.0, plan(100, 100, delta=1e-15, steps=100)),
    ],
)
@pytest.mark.filterwarnings("ignore:delta should be below")
def test_calibration_asks_the_accountants_seldom(monkeypatch, target, planned):
    asked = []
    exact = spent.prv
    monkeypatch.setattr(spent, "prv", lambda *given: asked.append(given) or exact(*given))
    found = calibrate(planned, target)
    assert len(asked) <= 2
    assert 0.995 * target <= account(found).epsilon <= target
    less = replace(found, mechanisms=[replace(m, steps=round(0.9 * m.steps)) for m in found.mechanisms])
    # negative control: a tenth of the steps left out wastes
    assert account(less).epsilon < 0.995 * target


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        (plan(1000, 100, delta=1e-15, steps=100), r"delta must be at least 2\.3e-13 to calibrate 100 step"),
        (
            plan(10**7, 1, delta=1e-5, steps=10),
            r"delta must be below 1e-06, the chance .* ever drawn, got 1e-05",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:delta should be below")
def test_a_delta_for_which_no_noise_can_be_found_is_named(planned, message):
    with pytest.raises(ValueError, match=message):
        calibrate(planned, 1.0)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 50), (0.5, 50), (0.05, 400)])
def test_the_noise_for_a_budget_spends_it(rate, steps):
    nu = noise.noise_multiplier(0.7, 1e-5, sample_rate=rate, steps=steps)
    assert 0.99 * 0.7 < epsilon(one(rate, steps, nu, 1e-5), accountant="pld") <= 0.7 + 1e-6
    quick = noise.normal_noise_multiplier(0.7, 1e-5, sample_rate=rate, steps=steps)
    assert quick == pytest.approx(nu, rel=0.05)
    # less noise spends more
    assert epsilon(one(rate, steps, 0.98 * nu, 1e-5), accountant="pld") > 0.7
