"""Random problems, nets and schedules from the ordinary to the absurd, and all that can be asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import bounds
from langevin import (
    GramWeights,
    Phase,
    Problem,
    Schedule,
    Weights,
    euler_maruyama,
    gradient_flow,
    orthogonally_separable,
    zeroth_order,
)
from langevin.engine.reductions.choose import REDUCTIONS

SIZES = (1.0, 1.0, 1.0, 0.0, 1e-6, 1e6, 1e-28, 1e28, 1e-150, 1e150, 1e-300, 1e300)
OBSERVABLES = (
    "alignment",
    "preactivation",
    "head_alignment",
    "misaligned",
    "distorted",
    "dead",
    "test_accuracy",
    "knn_accuracy",
)


@dataclass(frozen=True)
class Case:
    """What is trained, how, and when it is looked at."""

    problem: Problem
    weights: Weights
    schedule: Schedule
    dt: float
    times: Any

    def __str__(self) -> str:
        p, w = self.problem, self.weights
        sizes = ", ".join(
            f"{name} {np.abs(a).max():.3g}" for name, a in (("X", p.X), ("y", p.y), ("W", w.W), ("v", w.v))
        )
        return (
            f"{p.samples} samples in {p.dim}, {p.activation}, {p.loss}, "
            f"{'held-out, ' if p.X_test is not None else ''}{type(w).__name__} of {w.width}; largest: "
            f"{sizes}; "
            f"{self.schedule}; dt {self.dt:g}, times {self.times}"
        )


def draw(seed: Any) -> Case:
    """A random case."""
    rng = np.random.default_rng(seed)

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    # of which every product is within the range of doubles, or any
    sizes = SIZES[:6] if rng.random() < 0.5 else SIZES
    problem = _problem(rng, pick, sizes)
    weights = _weights(rng, pick, sizes, problem)
    phases = []
    for _ in range(pick(1, 1, 2, 3)):
        time = pick(0.1, 0.3, 1.0) if rng.random() < 0.9 else pick(1e-300, 1e-9, 1e6)
        sigma = pick(0.0, 0.3, 1.0, 1.0, 1e6, 1e-29, 1e29, 1e100, 1e-300)
        clip = pick(None, 1.0, 1.0, 0.1, 1e-29, 1e29, 1e-300, 1e300, 5e-324)
        normalised = clip is not None and rng.random() < 0.3
        how = {"clipping": "normalised", "stabiliser": pick(0.01, 1e-29, 1e29, 1e-300, 5e-324)}
        phases.append(Phase(pick("lp", "fft"), time, sigma, clip, **(how if normalised else {})))
    schedule = Schedule(phases)
    end, shortest = schedule.duration, min(phase.time for phase in schedule)
    longest = max(phase.time for phase in schedule)
    # from one step to a thousand; with phases of very different lengths some get none, and that is refused
    dt = shortest * pick(0.1, 1 / 3, 1.0, 1.4) if longest < 1e3 * shortest else longest / 100
    times = pick(None, None, [end], [0.0], [0.0, end], [end / 2], np.linspace(0, end, 5))
    return Case(problem, weights, schedule, dt, times)


def _problem(rng: np.random.Generator, pick: Callable[..., Any], sizes: tuple[float, ...]) -> Problem:
    n, d = pick(1, 1, 2, 3, 7), pick(1, 2, 5, 2000)
    activation, loss = pick("relu", "linear"), pick("logistic", "square")
    if n > 1 and d > 1 and rng.random() < 0.25:
        spread = pick(0.0, 0.2)
        return orthogonally_separable(
            n, d, activation=activation, loss=loss, spread=spread, rng=int(rng.integers(100))
        )
    X, y = rng.standard_normal((n, d)), np.where(np.arange(n) % 2, 1.0, -1.0)
    kind = pick("normal", "normal", "equal", "a sample of 0", "one class", "mixed sizes", "subnormal")
    if kind == "equal":
        X[:] = 1.0
    elif kind == "a sample of 0":
        X[0] = 0.0
    elif kind == "one class":
        y[:] = 1.0
    elif kind == "mixed sizes":
        X[0] *= 1e-200
    X = np.full((n, d), 5e-324) if kind == "subnormal" else X * pick(*sizes)
    if loss == "square":
        y = y * pick(1.0, 1.0, 0.0, 1e28, 1e-28, 1e150, 1e300)
    held_out = (X[::-1].copy(), y[::-1].copy()) if rng.random() < 0.3 else (None, None)
    return Problem(X, y, activation, loss, *held_out)


def _weights(
    rng: np.random.Generator, pick: Callable[..., Any], sizes: tuple[float, ...], problem: Problem
) -> Weights:
    h = pick(1, 2, 3, 40)
    W, v = rng.standard_normal((h, problem.dim)) * pick(*sizes), rng.standard_normal(h) * pick(*sizes)
    kind = pick("normal", "normal", "normal", "equal", "gram")
    if kind == "equal":
        W[:], v[:] = 1.0, 1.0
    if kind == "gram":
        return GramWeights(W, v, h + pick(0, 1, 10**9))
    return Weights(W, v)


def solvers(case: Case, rng: np.random.Generator) -> dict[str, Callable[[], Any]]:
    """Every solver, with random options."""
    given, how = (case.problem, case.weights, case.schedule), {"times": case.times}
    reduce = str(rng.choice(REDUCTIONS))
    precision: Any = str(rng.choice(["double", "single"]))
    observables = [name for name in OBSERVABLES if rng.random() < 0.15]
    paths = int(rng.choice([1, 3]))
    return {
        f"euler_maruyama({reduce}, {precision}, {observables})": lambda: euler_maruyama(
            *given,
            dt=case.dt,
            paths=paths,
            rng=0,
            reduce=reduce,
            precision=precision,
            observables=observables,
            threads=1,
            **how,
        ),
        "euler_maruyama": lambda: euler_maruyama(*given, dt=case.dt, rng=0, threads=1, **how),
        f"zeroth_order({reduce}, {precision}, dt)": lambda: zeroth_order(
            *given, dt=case.dt, reduce=reduce, precision=precision, **how
        ),
        f"zeroth_order({reduce})": lambda: zeroth_order(*given, reduce=reduce, **how),
        "gradient_flow": lambda: gradient_flow(*given, dt=case.dt).W,
    }


def accuracy(found: bounds.ExpectedAccuracy) -> np.ndarray:
    """Return what it says where it says something."""
    return found.value[found.valid]


def theorems(case: Case, rng: np.random.Generator) -> dict[str, Callable[[], Any]]:
    """Every bound, with random options."""
    p, w, s, t = case.problem, case.weights, case.schedule, case.times
    bands = (
        bounds.sandwich,
        bounds.rates,
        bounds.conserved_rates,
        bounds.lp_expected_loss,
        bounds.fft_expected_loss,
        bounds.localised_loss,
        bounds.first_order_loss,
        bounds.certified_loss,
        bounds.expected_norm,
        bounds.lp_expected_head,
    )
    calls: dict[str, Callable[[], Any]] = {b.__name__: lambda b=b: b(p, w, s, t) for b in bands}
    for kind in ("paper", "monotone", "lambert", "ode"):
        calls[f"approximation_error({kind})"] = lambda kind=kind: bounds.approximation_error(
            p, w, s, t, kind=kind
        )
        calls[f"approximation_error({kind}, dt)"] = lambda kind=kind: bounds.approximation_error(
            p, w, s, t, kind=kind, dt=case.dt
        )
    clip, sigma = (float(rng.choice([1.0, 1e-28, 1e28, 1e-300, 1e300])) for _ in range(2))
    rho, time = float(rng.choice([1.0, 1e-300, 1e300])), float(rng.choice([1.0, 1e-9, 1e6]))
    constant, share = float(rng.choice([0.0, 1.0, -1e3, 1e300])), float(rng.choice([1e-5, 1e-300, 0.5, 0, 1]))
    budget: dict[str, Any] = {"rho": rho, "sigma": sigma, "clip": clip}
    return calls | {
        "certified_loss(dt)": lambda: bounds.certified_loss(p, w, s, t, dt=case.dt),
        "expected_norm(dt)": lambda: bounds.expected_norm(p, w, s, t, dt=case.dt),
        "lp_expected_loss(dt)": lambda: bounds.lp_expected_loss(p, w, s, t, case.dt),
        "lp_expected_test_loss": lambda: bounds.lp_expected_test_loss(p, w, s, t, dt=case.dt),
        "lp_expected_accuracy": lambda: accuracy(bounds.lp_expected_accuracy(p, w, s, t, dt=case.dt)),
        "lp_stability": lambda: bounds.lp_stability(p, w, sample_rate=0.5, dt=case.dt, sigma=sigma),
        "certified_loss(sandwich)": lambda: bounds.certified_loss(p, w, s, t, base="sandwich"),
        "lipschitz_error": lambda: bounds.lipschitz_error(p, w, s, t, constant=constant),
        "distortion": lambda: bounds.distortion(p, w, clip=clip),
        "alignment_time": lambda: bounds.alignment_time(p, w, clip=clip),
        # not a number where a neuron is at a boundary
        "drift_of_expectation": lambda: np.nan_to_num(bounds.drift_of_expectation(p, w)),
        "check_assumptions": lambda: str(bounds.check_assumptions(p, w)),
        "zcdp": lambda: bounds.zcdp(s),
        "gdp": lambda: bounds.gdp(s),
        "epsilon": lambda: bounds.epsilon(s, share),
        "delta": lambda: bounds.delta(s, rho),
        "minimum_lp_share": lambda: bounds.minimum_lp_share(p, w, **budget),
        "lp_crossover": lambda: bounds.lp_crossover(p, w, time=time, clip=clip),
        "utility_curve": lambda: bounds.utility_curve(p, w, shares=[0.0, 0.5, 1.0], **budget),
    }
