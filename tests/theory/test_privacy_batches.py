"""Section 8'(f): what a chain on Poisson batches spends, by an accountant, and never by the Poisson map."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, norm

import bounds
from langevin import euler_maruyama
from langevin.model.dpsgd import DPSGD, noise_multiplier
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights

accounting = pytest.importorskip("dp_accounting")

DT = 0.01
DELTA = 1e-5


def phase(nu, rate, steps, *, clip=1.0, method: Any = "lp", **rest):
    """The phase whose chain in steps of `DT` has this noise multiplier."""
    made = Phase(method, steps * DT, nu * clip * math.sqrt(DT / 2) / rate, clip, sample_rate=rate, **rest)
    assert noise_multiplier(made, DT) == pytest.approx(nu)
    return made


def random_phase(seed, rate: float | None = None):
    rng = np.random.default_rng(seed)
    rate = float(10 ** rng.uniform(-2.3, -0.3)) if rate is None else rate
    steps = int(10 ** rng.uniform(1, 3))
    nu = max(0.9, rate * math.sqrt(steps) * 10 ** rng.uniform(0, 1))
    return phase(nu, rate, steps, clip=float(np.exp(rng.uniform(-1, 1))))


def one_step(nu, rate, epsilon):
    """Exact delta of one Poisson-sampled Gaussian step, in the worse direction."""
    return rate * bounds.gdp_delta(1 / nu, math.log1p(math.expm1(epsilon) / rate))


@pytest.mark.parametrize(("nu", "rate"), [(0.7, 0.02), (1.0, 0.1), (2.0, 0.5), (4.0, 0.9)])
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_one_step_has_a_closed_form(nu, rate, epsilon):
    schedule = Schedule([phase(nu, rate, 1)])
    exact = one_step(nu, rate, epsilon)
    assert exact * (1 - 1e-9) <= bounds.delta(schedule, epsilon, DT) <= exact * (1 + 5e-3) + 1e-15
    # negative control: a twentieth more noise
    assert one_step(1.05 * nu, rate, epsilon) < exact * (1 - 2e-2)
    # the Poisson map's mu is rate / nu, and understates, the more so the less noise
    assert bounds.gdp_delta(rate / nu, epsilon) < exact * (0.9 if nu <= 1 else 1.0)


def test_a_step_of_the_engine_is_the_mechanism():
    """One sample pushes at the clip, the others have no features: its head is ``b + nu xi``, in units."""
    n, rate, nu, clip, paths = 10, 0.3, 1.5, 0.8, 20_000
    target = 1e3
    problem = Problem(np.eye(n)[:, :1], target * np.eye(n)[0], "linear", "square")
    schedule = Schedule([phase(nu, rate, 1, clip=clip)])
    run = euler_maruyama(problem, Weights([[1.0]], [0.0]), schedule, dt=DT, paths=paths, rng=0)
    head = target - np.sqrt(2 * run.loss.isel(time=-1).values)
    moved = head * rate / (DT * clip)

    def mixture(nu, rate=rate):
        return lambda x: (1 - rate) * norm.cdf(x / nu) + rate * norm.cdf((x - 1) / nu)

    assert kstest(moved, mixture(nu)).pvalue > 1e-3
    # negative controls: another multiplier, another rate
    assert kstest(moved, mixture(1.1 * nu)).pvalue < 1e-3
    assert kstest(moved, mixture(nu, 1.5 * rate)).pvalue < 1e-3


def check_prv(seeds, eps_error):
    """Opacus's PRV less the public answer, for random schedules of one to three phases."""
    pytest.importorskip("opacus")
    from empirical.privacy.history import History, Mechanism
    from empirical.privacy.spent import epsilon

    found = []
    for seed in seeds:
        rng = np.random.default_rng(1000 + seed)
        count = int(rng.integers(1, 4))
        # a phase on full batches among the others in some
        full = bool(seed % 2) and count > 1
        rates = [None] * (count - full) + [1.0] * full
        schedule = Schedule([random_phase(10 * seed + k, rate) for k, rate in enumerate(rates)])
        mechanisms = [
            Mechanism(f"{k}", part.sample_rate, round(part.time / DT), noise_multiplier(part, DT))
            for k, part in enumerate(schedule)
        ]
        ours = bounds.epsilon(schedule, DELTA, DT)
        prv = epsilon(History(mechanisms, DELTA), accountant="prv", eps_error=eps_error)
        # PRV adds its error to an answer that is off by as much; PLD rounds losses up to 1e-4
        assert -2e-4 <= prv - ours <= 2.5 * eps_error, seed
        # negative control: 5 % less noise in all phases spends more than that
        quieter = Schedule([replace(part, sigma=0.95 * part.sigma) for part in schedule])
        assert ours < 60 * eps_error or bounds.epsilon(quieter, DELTA, DT) > prv, seed
        found.append((prv - ours, ours))
    return found


def test_opacus_prv_agrees():
    assert max(ours for _, ours in check_prv(range(20), 1e-2)) > 1


@pytest.mark.slow
def test_opacus_prv_agrees_many(tightness):
    found = check_prv(range(200), 5e-3)
    tightness("8'(f): epsilon of batches, PLD over PRV", [ours / (ours + gap) for gap, ours in found])


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]
)
def test_monotone_in_everything(seed):
    here = random_phase(seed)
    schedule = Schedule([here])
    epsilon = bounds.epsilon(schedule, DELTA, DT)
    rounded = epsilon + 2e-4
    less = [
        replace(here, sigma=1.2 * here.sigma),
        replace(here, clip=(here.clip or 0) / 1.2),
        # at the same multiplier
        replace(here, sample_rate=here.sample_rate / 2, sigma=2 * here.sigma),
    ]
    for other in less:
        assert bounds.epsilon(Schedule([other]), DELTA, DT) <= rounded
    longer = replace(here, time=2 * here.time)
    assert bounds.epsilon(Schedule([longer]), DELTA, DT) >= epsilon - 2e-4
    assert bounds.epsilon(schedule, 3 * DELTA, DT) <= rounded
    assert bounds.delta(schedule, epsilon + 0.1, DT) <= bounds.delta(schedule, epsilon, DT)
    assert bounds.delta(schedule, epsilon, DT) <= DELTA * (1 + 1e-2)
    # never more than full batches with the same multiplier
    full = replace(here, sample_rate=1.0, sigma=here.sigma * here.sample_rate)
    assert epsilon <= bounds.epsilon(Schedule([full]), DELTA)
    # negative control: half of the noise spends more
    if epsilon > 0.05:
        assert bounds.epsilon(Schedule([replace(here, sigma=here.sigma / 2)]), DELTA, DT) > rounded


@pytest.mark.parametrize(("nu", "steps"), [(3.0, 1), (20.0, 100), (50.0, 1000)])
def test_the_limit_of_full_batches_is_the_chain_in_closed_form(nu, steps):
    full = bounds.epsilon(Schedule([phase(nu, 1.0, steps)]), DELTA)
    assert bounds.epsilon(Schedule([phase(nu, 1.0, steps)]), DELTA, DT) == full
    gaps = [
        full - bounds.epsilon(Schedule([phase(nu, 1 - short, steps)]), DELTA, DT)
        for short in (0.1, 1e-2, 1e-3, 1e-5)
    ]
    assert gaps[-1] == pytest.approx(0, abs=2e-4)
    assert (np.diff(gaps) <= 1e-4).all()
    # negative control: a tenth of the samples left out can be seen
    assert gaps[0] > 0.02 * full


def test_the_poisson_map_understates():
    """Its ``mu`` against a *lower* bound of what the chain spends: PLD with losses rounded down."""
    from dp_accounting.pld import privacy_loss_distribution

    for nu, rate, steps, most in ((0.7, 0.01, 1000, 0.7), (1.0, 0.05, 200, 0.8), (2.0, 0.1, 100, 1.0)):
        dpsgd = DPSGD(0.5, nu, 1.0, steps, sample_rate=rate, samples=1000)
        sampled = dpsgd.phase("fft")
        schedule = Schedule([sampled])
        through_the_map = bounds.epsilon(Schedule([replace(sampled, sample_rate=1.0)]), DELTA)
        assert through_the_map == pytest.approx(bounds.gdp_epsilon(rate * math.sqrt(steps) / nu, DELTA))
        least = privacy_loss_distribution.from_gaussian_mechanism(
            nu, sampling_prob=rate, pessimistic_estimate=False, value_discretization_interval=1e-4
        ).self_compose(steps)
        lower = float(least.get_epsilon_for_delta(DELTA))
        assert lower <= bounds.epsilon(schedule, DELTA, dpsgd.dt) <= lower + 0.05 * lower
        assert through_the_map < most * lower
        # the limit of many steps lies on the other side of the map's mu
        assert math.sqrt(math.expm1(1 / nu**2)) > 1 / nu


def test_phases_compose_whatever_their_batches():
    parts = [phase(1.2, 0.05, 100), phase(30.0, 1.0, 50, method="fft"), phase(2.0, 0.2, 30)]
    schedule = Schedule(parts)
    found = bounds.epsilon(schedule, DELTA, DT)
    accountant = accounting.pld.PLDAccountant(value_discretization_interval=1e-4)
    for part in parts:
        event, steps = accounting.GaussianDpEvent(noise_multiplier(part, DT)), round(part.time / DT)
        if part.sample_rate < 1:
            event = accounting.PoissonSampledDpEvent(part.sample_rate, event)
        accountant.compose(event, steps)
    assert found == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-3)
    assert bounds.epsilon(Schedule(parts[::-1]), DELTA, DT) == pytest.approx(found, abs=2e-4)
    each = [bounds.epsilon(Schedule([part]), DELTA, DT) for part in parts]
    # negative controls: the largest part, and the sum of the parts
    assert max(each) + 0.05 < found < sum(each) - 0.05
    # one sample rate in two phases is one history
    halves = Schedule([phase(1.2, 0.05, 50), phase(1.2, 0.05, 50, method="fft")])
    assert bounds.epsilon(halves, DELTA, DT) == each[0]


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))]
)
@pytest.mark.parametrize("solve", ["sigma", "clip", "time"])
def test_calibration_spends_the_budget(seed, solve):
    rng = np.random.default_rng(seed)
    schedule = Schedule([random_phase(seed), *([random_phase(seed + 50, 1.0)] if seed % 2 else [])])
    target = bounds.epsilon(schedule, DELTA, DT) * float(np.exp(rng.uniform(-0.2, 0.5)))
    found = bounds.calibrate(schedule, solve, epsilon=target, delta=DELTA, dt=DT)
    spent = bounds.epsilon(found, DELTA, DT)
    assert spent <= target
    ratios = [getattr(a, solve) / getattr(b, solve) for a, b in zip(found, schedule, strict=True)]
    steps = [round(part.time / DT) for part in found]
    if solve == "time":
        assert [n * DT for n in steps] == pytest.approx([part.time for part in found])
        # the ratios are kept to a step
        before = [round(part.time / DT) for part in schedule]
        low, high = (max((n + k) / m for n, m in zip(steps, before, strict=True)) for k in (0, 1))
        assert all(low * m < n + 1 and high * m >= n for n, m in zip(steps, before, strict=True))
        longer = Schedule([replace(part, time=part.time + DT) for part in found])
        assert spent >= 0.995 * target or bounds.epsilon(longer, DELTA, DT) > target
    else:
        assert spent >= 0.995 * target
        assert ratios == pytest.approx([ratios[0]] * len(ratios))
    # negative control: 3 % less noise is too little
    assert bounds.epsilon(Schedule([replace(p, sigma=0.97 * p.sigma) for p in found]), DELTA, DT) > spent


def test_calibration_in_time_stops_at_the_last_step():
    schedule = Schedule([phase(0.8, 0.3, 1000)])
    (found,) = bounds.calibrate(schedule, "time", epsilon=8.0, delta=DELTA, dt=DT).phases
    longer = replace(found, time=found.time + DT)
    assert bounds.epsilon(Schedule([found]), DELTA, DT) <= 8.0 < bounds.epsilon(Schedule([longer]), DELTA, DT)


def test_calibration_in_time_takes_whole_steps():
    """Of a schedule that does not: it runs 10 steps of .1 in a time of 1.04, and 104 in a time of 10.4."""
    schedule = Schedule.lp(time=1.04, sigma=30.0, clip=1.0, sample_rate=0.3)
    with pytest.warns(UserWarning, match="no multiple of dt"):
        target = 3 * bounds.epsilon(schedule, DELTA, 0.1)
    with pytest.warns(UserWarning, match="no multiple of dt"):
        (found,) = bounds.calibrate(schedule, "time", epsilon=target, delta=DELTA, dt=0.1).phases
    assert found.time / 0.1 == pytest.approx(round(found.time / 0.1))
    assert 0.99 * target < bounds.epsilon(Schedule([found]), DELTA, 0.1) <= target
    # negative control: the steps that the same multiple of the given time would run
    scaled = replace(found, time=0.1 * round(1.04 * found.time / 0.1))
    assert bounds.epsilon(Schedule([scaled]), DELTA, 0.1) > target


def test_without_noise_nothing_is_private():
    silent = Schedule([phase(1.0, 0.1, 10), replace(phase(1.0, 0.1, 10), sigma=0.0)])
    assert bounds.epsilon(silent, DELTA, DT) == math.inf
    assert bounds.delta(silent, 1.0, DT) == 1.0
    with pytest.raises(ValueError, match="sigma must be positive in every phase to calibrate it"):
        bounds.calibrate(silent, "time", epsilon=1.0, delta=DELTA, dt=DT)


@pytest.mark.parametrize("clipping", ["normalised", "margin", "column"])
def test_every_clipping_spends_the_same(clipping):
    flat = Schedule([phase(1.0, 0.1, 100)])
    other = Schedule([replace(part, clipping=clipping) for part in flat])
    assert bounds.epsilon(other, DELTA, DT) == bounds.epsilon(flat, DELTA, DT)


CALLS: dict[str, Any] = {
    "epsilon": lambda schedule, **how: bounds.epsilon(schedule, DELTA, **how),
    "delta": lambda schedule, **how: bounds.delta(schedule, 1.0, **how),
    "calibrate": lambda schedule, **how: bounds.calibrate(schedule, "sigma", epsilon=1.0, delta=DELTA, **how),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_refused_is_named(call):
    mixed = Schedule([phase(5.0, 1.0, 10), phase(2.0, 0.1, 10)])
    with pytest.raises(ValueError, match=r"dt must be given with a sample_rate below 1, got None .*=0\.1"):
        call(mixed)
    with pytest.raises(ValueError, match=r"neighbours must be 'add-remove' .*got 'replace' and .*=0\.1"):
        call(mixed, dt=DT, neighbours="replace")
    with pytest.raises(ValueError, match="dt must be positive"):
        call(mixed, dt=0.0)
    with pytest.raises(ValueError, match="clip must be positive for privacy"):
        call(Schedule([*mixed, Phase("fft", 1.0, 1.0)]), dt=DT)
    call(mixed, dt=DT)
    # full batches need none of it
    full = Schedule([mixed.phases[0]])
    assert call(full) == call(full, dt=DT)
    call(full, neighbours="replace")


def test_calibration_refuses_what_it_cannot_meet():
    schedule = Schedule([phase(1.0, 0.1, 100)])

    def calibrate(solve: Any = "sigma", epsilon=1.0, delta=DELTA, schedule=schedule):
        return bounds.calibrate(schedule, solve, epsilon=epsilon, delta=delta, dt=DT)

    with pytest.raises(ValueError, match="epsilon must be at most 100 with a sample_rate below 1"):
        calibrate(epsilon=101.0)
    with pytest.raises(ValueError, match=r"delta must be at least .* to calibrate 100 step\(s\)"):
        calibrate(delta=1e-15)
    with pytest.raises(ValueError, match="delta must be below 1, the chance that a sample is ever drawn"):
        calibrate(delta=0.99999)
    with pytest.raises(ValueError, match=r"epsilon must be at least .* which one step of each phase spends"):
        calibrate("time", schedule=Schedule([phase(0.3, 0.3, 100)]))
