"""What a history spends: two accountants, closed forms, calibration, plans and the report."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

import bounds
from empirical.privacy.calibrate import calibrate
from empirical.privacy.history import History, Mechanism, plan, release
from empirical.privacy.report import account
from empirical.privacy.spent import delta, epsilon
from langevin.model.dpsgd import DPSGD
from langevin.model.schedule import Schedule

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")


def random_history(seed: int, most: float) -> History:
    """One to three phases of up to ``10^most`` steps, some with a release."""
    rng = np.random.default_rng(seed)
    mechanisms = []
    for i in range(rng.integers(1, 4)):
        rate, steps = float(10 ** rng.uniform(-2.5, -0.5)), int(10 ** rng.uniform(0.5, most))
        noise = max(1.0, rate * math.sqrt(steps) * 10 ** rng.uniform(0.0, 1.2))
        mechanisms.append(Mechanism(f"phase {i}", rate, steps, noise))
    if rng.random() < 0.3:
        mechanisms.append(release("prototypes", float(rng.uniform(4, 20))))
    return History(mechanisms, delta=float(10 ** rng.uniform(-7, -4)))


@pytest.mark.parametrize(
    ("seed", "most"),
    [
        *((seed, 2.0) for seed in (0, 1)),
        *(pytest.param(seed, 2.0, marks=pytest.mark.slow) for seed in range(2, 6)),
        *(pytest.param(seed, 2.7, marks=pytest.mark.slow) for seed in range(6, 26)),
    ],
)
def test_prv_agrees_with_pld(seed, most):
    history = random_history(seed, most)
    prv, pld = epsilon(history), epsilon(history, accountant="pld")
    # both are upper bounds; PRV adds its error of .001
    assert pld - 1e-4 <= prv <= pld + 0.0025
    # negative control: a tenth more noise is seen
    noisier = replace(
        history,
        mechanisms=[replace(m, noise_multiplier=1.1 * (m.noise_multiplier or 0)) for m in history.mechanisms],
    )
    assert not pld - 1e-4 <= epsilon(noisier) <= pld + 0.0025


@pytest.mark.parametrize(
    ("mu", "steps"),
    [
        (0.1, 1),
        (4.0, 100),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0.1, 100), (1.0, 1), (1.0, 100), (4.0, 1))
        ),
    ],
)
def test_full_batches_have_a_closed_form(mu, steps):
    noise = math.sqrt(steps) / mu
    history = History([Mechanism("fft", 1.0, steps, noise, clip=1.0)], 1e-5)
    exact = bounds.gdp_epsilon(mu, 1e-5)
    assert epsilon(history, accountant="gdp") == pytest.approx(exact, rel=1e-9)
    assert exact <= epsilon(history) <= exact + 0.0025
    assert epsilon(history, accountant="pld") == pytest.approx(exact, abs=2e-4)
    assert delta(history, exact, accountant="gdp") == pytest.approx(1e-5, rel=1e-6)
    assert delta(history, exact) == pytest.approx(1e-5, rel=5e-3)
    # the same of a replaced sample, and of the diffusion that these steps map to
    dpsgd = DPSGD(0.01, noise, 1.0, steps)
    for neighbours in ("add-remove", "replace"):
        there = bounds.dpsgd_epsilon(dpsgd, 1e-5, neighbours=neighbours)
        here = History.from_dpsgd([dpsgd], 1e-5, neighbours=neighbours)
        assert there <= epsilon(here) <= there + 0.003
        assert epsilon(here, accountant="gdp") == pytest.approx(there, rel=1e-9)
    # negative control: sampling half of the data is seen
    assert epsilon(replace(history, mechanisms=[Mechanism("fft", 0.5, steps, noise)])) < exact - 0.003


def test_epsilon_inverts_delta():
    history = plan(1000, 100, delta=1e-5, steps=100, noise_multiplier=3.0)
    back = replace(history, delta=delta(history, 1.0))
    assert epsilon(back, accountant="pld") == pytest.approx(1.0, abs=1e-3)
    assert epsilon(back) == pytest.approx(1.001, abs=1e-3)


def test_the_subsampled_loss_exceeds_what_the_diffusion_says():
    """The map to Langevin understates the loss of Poisson sampling: the account must not go through it."""
    dpsgd = DPSGD(0.1, 0.8, 1.0, 100, sample_rate=0.01, samples=1000)
    # the diffusion with this sigma is that of full batches
    mapped = Schedule([replace(dpsgd.phase("fft"), sample_rate=1.0)])
    assert epsilon(History.from_dpsgd([dpsgd], 1e-5)) > 1.2 * bounds.epsilon(mapped, 1e-5)


def test_no_noise_is_not_private_and_nothing_is_free():
    history = plan(100, 10, delta=1e-3, steps=10, noise_multiplier=0.0)
    assert epsilon(history) == epsilon(history, accountant="pld") == math.inf
    assert delta(history, 5.0) == 1.0
    full = History([Mechanism("lp", 1.0, 1, 0.0)], 1e-3)
    assert epsilon(full, accountant="gdp") == math.inf
    with_noise = History([Mechanism("lp", 0.1, 5, 9.0), Mechanism("fft", 0.1, 5, 0.0)], 1e-3)
    assert epsilon(with_noise) == math.inf
    assert epsilon(History([], 1e-3)) == delta(History([], 1e-3), 1.0) == 0.0


@pytest.mark.parametrize(
    ("target", "lp_share"),
    [
        *((target, 0.25) for target in (0.1, 1.0)),
        *(pytest.param(target, 0.25, marks=pytest.mark.slow) for target in (0.3, 3.0)),
        *(pytest.param(target, 0.0, marks=pytest.mark.slow) for target in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        pytest.param(10.0, 0.5, marks=pytest.mark.slow),
    ],
)
def test_calibration_meets_and_never_overshoots(target, lp_share):
    planned = plan(1000, 100, delta=1e-4, steps=40, lp_share=lp_share)
    found = calibrate(planned, target)
    spent = max(epsilon(found), epsilon(found, accountant="pld"))
    assert 0.995 * target <= spent <= target
    assert len({m.noise_multiplier for m in found.mechanisms}) == 1
    # negative control: a tenth more steps overspends, a tenth fewer wastes
    last = found["fft"]
    for change, wrong in ((4, 1), (-4, -1)):
        other = replace(found, mechanisms=[*found.mechanisms[:-1], replace(last, steps=last.steps + change)])
        assert (epsilon(other) > target) if wrong > 0 else (epsilon(other) < 0.995 * target)


def test_the_share_of_probing_does_not_change_the_total():
    spent = {
        epsilon(plan(1000, 100, delta=1e-4, steps=40, lp_share=share, noise_multiplier=3.0))
        for share in (0.0, 0.25, 0.5, 1.0)
    }
    assert len(spent) == 1


def test_separate_multipliers_and_a_release_share_one_budget():
    shares = {"lp": 0.2, "fft": 0.7, "prototypes": 0.1}
    planned = plan(1000, 1000, delta=1e-4, steps=40, lp_share=0.5, releases=[release("prototypes")])
    found = calibrate(planned, 2.0, shares=shares)
    assert 1.99 <= epsilon(found) <= 2.0
    rho = {m.name: m.steps / (2 * (m.noise_multiplier or 0) ** 2) for m in found.mechanisms}
    assert {name: r / sum(rho.values()) for name, r in rho.items()} == pytest.approx(shares)


def test_a_fixed_release_pays_first():
    planned = plan(1000, 100, delta=1e-4, steps=40, releases=[release("prototypes", 8.0)])
    found = calibrate(planned, 1.0)
    assert found["prototypes"].noise_multiplier == 8.0
    assert 0.995 <= epsilon(found) <= 1.0
    without = calibrate(plan(1000, 100, delta=1e-4, steps=40), 1.0)
    assert (found["fft"].noise_multiplier or 0) > 1.02 * (without["fft"].noise_multiplier or 0)
    with pytest.raises(ValueError, match=r"epsilon must exceed .* spend alone, got 0\.2"):
        calibrate(planned, 0.2)


def test_budgets_do_not_add_up():
    """Two calibrations at 1 composed exceed 1, and are less than 2."""
    one = calibrate(plan(1000, 100, delta=1e-4, steps=40), 1.0)["fft"]
    both = History([replace(one, name="lp"), one], 1e-4)
    assert 1.3 < epsilon(both) < 1.6


def test_a_private_twin_without_noise():
    twin = calibrate(plan(1000, 100, delta=1e-4, steps=40, lp_share=0.5), math.inf)
    assert [m.noise_multiplier for m in twin.mechanisms] == [0.0, 0.0]


def test_plan_counts_whole_steps_at_the_exact_rate():
    planned = plan(1097, 110, delta=1e-4, epochs=10, lp_share=0.25, noise_multiplier=1.0)
    # a loader of 10 batches would say .1 and 100
    assert planned["lp"].sample_rate == 110 / 1097
    assert planned.steps == 100
    assert planned["lp"].steps == 25
    assert plan(1000, 100, delta=1e-4, epochs=0.7).steps == 7
    assert plan(1000, 300, delta=1e-4, epochs=1).steps == 4
    assert [m.name for m in plan(10, 1, delta=1e-4, steps=3, lp_share=1).mechanisms] == ["lp"]
    assert History.from_dict(json.loads(json.dumps(planned.as_dict()))) == planned


def test_one_step_in_ten_is_seen():
    ten = plan(1000, 100, delta=1e-4, steps=10, noise_multiplier=2.0)
    eleven = plan(1000, 100, delta=1e-4, steps=11, noise_multiplier=2.0)
    assert epsilon(eleven) > epsilon(ten, accountant="pld") + 0.01


def test_report():
    planned = plan(1097, 110, delta=1e-4, steps=20, lp_share=0.5, noise_multiplier=2.0, clip=0.5)
    report = account(planned)
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["epsilon_prv"] == epsilon(planned)
    assert plain["epsilon_pld"] == epsilon(planned, accountant="pld")
    assert plain["mechanisms"][0] == {
        "name": "lp",
        "sample_rate": 110 / 1097,
        "steps": 10,
        "noise_multiplier": 2.0,
        "clip": 0.5,
    }
    text = str(report)
    for said in (
        "PRV",
        "PLD",
        "delta 0.0001",
        "1097 samples",
        "Poisson",
        "add-remove",
        "clip 0.5",
        "0.100273",
    ):
        assert said in text
    assert "NOT below" in str(account(replace(planned, delta=0.01)))
    assert "none: all samples" in str(
        account(History([release("prototypes", 5.0)], 1e-5, neighbours="replace"))
    )


def test_a_large_delta_warns():
    with pytest.warns(UserWarning, match=r"delta should be below 1 / samples = 0\.01, got 0\.01"):
        calibrate(plan(100, 10, delta=0.01, steps=5), math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(plan(100, 10, delta=0.009, steps=5), math.inf)


PLANNED = plan(1000, 100, delta=1e-4, steps=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mechanism("", 0.1, 1), r"name must be a non-empty string, got ''"),
        (lambda: Mechanism("a", 0.0, 1), r"sample_rate must be positive, got 0\.0"),
        (lambda: Mechanism("a", 10, 1), r"sample_rate must lie in \(0, 1\], got 10"),
        (lambda: Mechanism("a", 0.1, 0), r"steps must be at least 1, got 0"),
        (lambda: Mechanism("a", 0.1, 1, -1.0), r"noise_multiplier must be zero or positive, got -1\.0"),
        (lambda: Mechanism("a", 0.1, 1, math.nan), r"noise_multiplier must be finite, got nan"),
        (lambda: Mechanism("a", 0.1, 1, 1.0, 0.0), r"clip must be positive or None, got 0\.0"),
        (lambda: History([], 0.0), r"delta must be positive, got 0\.0"),
        (lambda: History([], 1.0), r"delta must be below 1, got 1\.0"),
        (lambda: History([release("a"), release("a")], 0.1), r"distinct names, got 'a' twice"),
        (
            lambda: History([Mechanism("a", 0.1, 1)], 0.1, neighbours="replace"),
            r"neighbours must be 'add-remove' with Poisson sampling, got 'replace'",
        ),
        (lambda: epsilon(PLANNED), r"noise_multiplier must be given, got None in 'fft': calibrate"),
        (lambda: epsilon(PLANNED, accountant="rdp"), r"accountant must be one of"),  # pyright: ignore
        (
            lambda: epsilon(History([Mechanism("a", 0.1, 1, 1.0)], 0.1), accountant="gdp"),
            r"accountant must be 'prv' or 'pld' with Poisson sampling, got 'gdp' at sample_rate=0\.1",
        ),
        (
            lambda: calibrate(PLANNED, 0.005),
            r"epsilon must be at least 0\.01, ten times .*, got 0\.005",
        ),
        (lambda: calibrate(PLANNED, 200.0), r"epsilon must be at most 100 or infinite, got 200"),
        (lambda: calibrate(PLANNED, math.nan), r"epsilon must be finite, got nan"),
        (lambda: calibrate(PLANNED, -1.0), r"epsilon must be positive, got -1"),
        (lambda: calibrate(History([release("a", 1.0)], 0.1), 1.0), r"must be None in the mechanisms"),
        (lambda: calibrate(PLANNED, 1.0, shares={"lp": 1.0}), r"shares must name .*\['fft'\], got \['lp'\]"),
        (lambda: calibrate(PLANNED, 1.0, shares={"fft": 0.5}), r"shares must sum to 1, got 0\.5"),
        (lambda: plan(10, 20, delta=0.1, steps=1), r"expected_batch must be at most samples=10, got 20"),
        (lambda: plan(10, 2, delta=0.1), r"exactly one of epochs and steps must be given"),
        (lambda: plan(10, 2, delta=0.1, steps=1, epochs=2), r"exactly one of epochs and steps must be given"),
        (lambda: plan(10, 2, delta=0.1, steps=3, lp_share=0.1), r"lp_share must leave a step to each phase"),
        (lambda: plan(10, 2, delta=0.1, steps=3, lp_share=1.1), r"lp_share must lie in \[0, 1\], got 1\.1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_grid_beyond_memory_is_refused():
    history = plan(1000, 100, delta=1e-4, steps=1000, noise_multiplier=1.0)
    with pytest.raises(MemoryError, match="use a larger eps_error"):
        epsilon(history, eps_error=1e-9)
    silent = plan(1000, 100, delta=1e-4, steps=10, noise_multiplier=1e-5)
    with pytest.raises(MemoryError, match=r"PLD accountant on .* use more noise"):
        epsilon(silent, accountant="pld")
    with pytest.raises((MemoryError, ValueError), match="PRV"):
        epsilon(silent)


def test_a_delta_beyond_double_precision_is_refused():
    history = plan(1000, 100, delta=1e-14, steps=10, noise_multiplier=2.0)
    with pytest.raises(ValueError, match=r"delta=1e-14 .* out of the PRV accountant's reach"):
        epsilon(history)


def test_importing_is_light():
    code = (
        "import sys, empirical; empirical.plan, empirical.Ledger, empirical.epsilon\n"
        "print([m for m in ('torch', 'opacus', 'dp_accounting') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
