"""What bounds declare to cover: they evaluate that, and refuse everything else by name."""

import inspect
import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import bounds
from bounds.support import covers
from bounds.support.covers import ALL, ANY, PROBING, Covers, declares, table
from langevin.model import activations, losses
from langevin.model.activations import ACTIVATIONS, Activation
from langevin.model.losses import LOSSES, Loss
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

WEIGHTS = Weights([[1.0, -0.5], [-0.5, 1.0]], [0.2, -0.3])
CLIPPED = Schedule.fft(time=0.5, sigma=0.1, clip=1.0)
ARGUMENTS = {
    "weights": WEIGHTS,
    "schedule": CLIPPED,
    "constant": 1.0,
    "time": 0.5,
    "level": 2.0,
    "rho": 0.1,
    "sigma": 0.5,
    "clip": 1.0,
    "shares": [0.0, 1.0],
}
OTHERS = {
    "split_advice": {"weights": [WEIGHTS]},
    "utility_curve": {"time": None},
    "lp_expected_test_loss": {"dt": 0.1},
    "lp_expected_accuracy": {"dt": 0.1},
}
"""Arguments that one function takes otherwise."""
STATEMENTS = [
    (name, kind, found)
    for name, kinds in table().items()
    for kind, found in (
        kinds.items() if "kind" in inspect.signature(getattr(bounds, name)).parameters else [("", kinds)]
    )
]
"""Name, kind to ask for, and what is covered: `Covers`, or alternatives by name."""


@pytest.fixture
def made_up():
    """A loss and an activation that no proof knows."""
    loss = Loss(
        "quartic",
        lambda f, y: (f - y) ** 4 / 4,
        lambda f, y: (f - y) ** 3,
        lambda f, y: 3 * (f - y) ** 2,
        np.inf,
    )
    activation = Activation("sine", lambda z: np.sin(z), lambda z: np.cos(z), lipschitz=1.0)
    losses.register(loss)
    activations.register(activation)
    yield loss.name, activation.name
    del LOSSES[loss.name], ACTIVATIONS[activation.name]


def problem_of(loss, activation):
    y = [0, 1] if loss in LOSSES and LOSSES[loss].classes else [1, -1]
    return Problem([[1.0, 0.0], [0.0, 1.0]], y, activation, loss)


def weights_of(problem):
    """Weights with as many outputs as the problem."""
    K = problem.outputs_dim
    return WEIGHTS if K == 1 else Weights(WEIGHTS.W, np.outer(WEIGHTS.v, np.arange(1.0, K + 1)))


def evaluate(function, problem, kind="", **others: Any) -> Any:
    """The result of a bound, or the message with which it raises."""
    weights = weights_of(problem)
    given = (
        ARGUMENTS | {"weights": weights} | OTHERS.get(function.__name__, {}) | {"problem": problem} | others
    )
    if isinstance(given["weights"], list):
        given["weights"] = [weights]
    needed = {
        name: given[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty or (name in given and name != "time")
    }
    try:
        return function(**needed, **({"kind": kind} if kind else {}))
    except ValueError as error:
        return str(error)


def check(function, kind, declared, problem):
    """Assert that a bound refuses exactly the losses and activations that it does not declare."""
    alternatives = [declared] if isinstance(declared, Covers) else list(declared.values())
    found = evaluate(function, problem, kind)
    reason = found if isinstance(found, str) else getattr(found, "reason", "")
    if any(not cover.refuses(problem) for cover in alternatives):
        assert "is not covered, only" not in reason
        return
    assert isinstance(found, str) or not np.any(found.valid)
    for what, name in (("losses", problem.loss), ("activations", problem.activation)):
        if all(getattr(cover, what) != ANY and name not in getattr(cover, what) for cover in alternatives):
            assert f"{name!r} is not covered" in reason


@pytest.mark.parametrize(("name", "kind", "declared"), STATEMENTS)
def test_what_is_not_declared_is_refused_by_name(name, kind, declared, made_up):
    for loss in ("logistic", made_up[0]):
        for activation in ("relu", made_up[1]):
            check(getattr(bounds, name), kind, declared, problem_of(loss, activation))


@pytest.mark.parametrize(("name", "kind", "declared"), STATEMENTS)
def test_every_loss_and_activation_of_the_tables(name, kind, declared):
    for loss in LOSSES:
        for activation in ACTIVATIONS:
            check(getattr(bounds, name), kind, declared, problem_of(loss, activation))


def refused(found, reason):
    """Assert that nothing was computed, for this reason."""
    if isinstance(found, str):
        assert reason in found
    else:
        assert not np.any(found.valid)
        assert reason in found.reason


@pytest.mark.parametrize("loss", ["softmax", "ovr", "square", "huber"])
@pytest.mark.parametrize(("name", "kind", "declared"), STATEMENTS)
def test_several_outputs_are_refused_unless_they_are_declared(name, kind, declared, loss):
    alternatives = [declared] if isinstance(declared, Covers) else list(declared.values())
    if any(cover.outputs for cover in alternatives):
        return
    for activation in ("relu", "linear"):
        y = [0, 1, 2] if LOSSES[loss].classes else np.eye(3)
        problem = Problem([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], y, activation, loss)
        found = evaluate(getattr(bounds, name), problem, kind)
        refused(found, "K = 3 outputs are not covered, only a scalar head")


@pytest.mark.parametrize("schedule", [Schedule.fft, Schedule.lp])
@pytest.mark.parametrize(("name", "kind", "declared"), STATEMENTS)
def test_batches_are_refused_unless_they_are_declared(name, kind, declared, schedule):
    function = getattr(bounds, name)
    alternatives = [declared] if isinstance(declared, Covers) else list(declared.values())
    if "schedule" not in inspect.signature(function).parameters or any(c.batches for c in alternatives):
        return
    covered = 0
    for clip, loss in itertools.product((None, 1.0), ("logistic", "square")):
        how: Any = dict(time=0.5, sigma=0.1, clip=clip)
        full, sampled = schedule(**how), schedule(**how, sample_rate=0.5)
        problem = problem_of(loss, "linear")
        if not any(not c.refuses(problem) and all(c.phases(full)) for c in alternatives):
            continue
        covered += 1
        # at time 0, before any step, a bound may hold whatever follows
        found = evaluate(function, problem, kind, schedule=sampled)
        reason = found if isinstance(found, str) else getattr(found, "reason", "")
        assert "sample_rate=0.5 is not covered, only full batches" in reason
        if not isinstance(found, str):
            assert not np.any(found.valid[1:])
    assert covered or not any(getattr(c, schedule.__name__) for c in alternatives)


@pytest.mark.parametrize(("name", "kind", "declared"), STATEMENTS)
def test_the_clipping_of_several_outputs_is_for_their_losses(name, kind, declared):
    function = getattr(bounds, name)
    if "schedule" not in inspect.signature(function).parameters:
        return
    for clipping in ("margin", "column"):
        schedule = Schedule.lp(time=0.5, clip=1.0, clipping=clipping)
        found = evaluate(function, problem_of("logistic", "linear"), kind, schedule=schedule)
        assert isinstance(found, str)
        assert f"with loss 'logistic', got {clipping!r}, which is defined for loss" in found


def test_the_expected_loss_covers_batches_of_the_chain_alone():
    problem, schedule = problem_of("square", "relu"), Schedule.lp(time=0.5, sample_rate=0.5)
    assert "sample_rate=0.5" in bounds.lp_expected_loss(problem, WEIGHTS, schedule).reason
    assert bounds.lp_expected_loss(problem, WEIGHTS, schedule, dt=0.1).valid.all()
    late = Schedule([*schedule, Phase("lp", 0.5, clip=1.0)])
    for found in (
        bounds.lp_expected_loss(problem, WEIGHTS, late, dt=0.1, times=[0.5, 0.6]),
        bounds.lp_expected_test_loss(held_out(problem), WEIGHTS, late, dt=0.1, times=[0.5, 0.6]),
        bounds.lp_expected_accuracy(held_out(problem), WEIGHTS, late, dt=0.1, times=[0.5, 0.6]),
    ):
        assert found.valid.tolist() == [True, False]
        assert "flat clipping is not covered" in found.reason
    for bound in (bounds.lp_expected_test_loss, bounds.lp_expected_accuracy):
        found = bound(problem, WEIGHTS, schedule, dt=0.1)
        assert not found.valid.any()
        assert "no held-out points" in found.reason
    found = bounds.lp_expected_accuracy(held_out(problem, [0.5, 2.0]), WEIGHTS, schedule, dt=0.1)
    assert not found.valid.any()
    assert "not -1 and +1" in found.reason


def held_out(problem, targets=(1.0, -1.0)):
    return Problem(problem.X, problem.y, problem.activation, problem.loss, problem.X, targets)


def test_a_function_that_falls_through_is_seen(made_up):
    @declares(Covers(("square",), ANY))
    def forgetful(problem, weights, schedule):
        return bounds.Band([0.0], 0.0, 1.0, True, "", "new")

    with pytest.raises(AssertionError):
        check(forgetful, "", covers.declared(forgetful), problem_of(made_up[0], "relu"))
    check(forgetful, "", covers.declared(forgetful), problem_of("square", made_up[1]))
    several = Problem(np.eye(2), np.eye(2), "linear", "square")
    with pytest.raises(AssertionError):
        refused(evaluate(forgetful, several), "K = 2 outputs are not covered")


def test_a_function_without_a_declaration_is_seen(monkeypatch):
    def forgotten(problem):
        return problem

    monkeypatch.setattr(bounds, "forgotten", forgotten, raising=False)
    monkeypatch.setattr(bounds, "__dir__", lambda: ["rates", "forgotten"])
    with pytest.raises(LookupError, match="forgotten does not declare"):
        table()


def test_curves_leave_out_bounds_that_do_not_cover_the_problem(made_up):
    curve = bounds.utility_curve(
        problem_of(*made_up), WEIGHTS, sigma=0.5, clip=1.0, time=0.5, shares=[0.0, 1.0]
    )
    assert not curve.curves
    assert all(repr(made_up[0]) in reason for reason in curve.reasons.values())
    advice = evaluate(bounds.split_advice, problem_of(*made_up))
    assert not advice.curves
    assert all(repr(made_up[0]) in reason for reason in advice.reasons.values())


@pytest.mark.parametrize(("name", "kinds"), table().items())
def test_the_docstring_says_what_is_covered(name, kinds):
    text = " ".join((inspect.getdoc(getattr(bounds, name)) or "").split())
    for found in kinds.values():
        assert str(found) in text
        for names, known in ((found.losses, LOSSES), (found.activations, ACTIVATIONS)):
            assert names == ANY or set(names) <= set(known)
        assert {*found.lp, *(found.late_lp or ())} <= {*ALL, *PROBING}
        assert set(found.fft) <= set(ALL)


@pytest.mark.parametrize(
    ("phases", "covered", "reason"),
    [
        ([Phase("lp", 1.0), Phase("fft", 1.0, clip=1.0)], [True, True], ""),
        ([Phase("fft", 1.0)], [False], "full fine-tuning without clipping"),
        (
            [
                Phase("lp", 1.0),
                Phase("fft", 1.0, clip=1.0, clipping="normalised"),
                Phase("fft", 1.0, clip=1.0),
            ],
            [True, False, True],
            "full fine-tuning with normalised clipping",
        ),
        (
            [Phase("fft", 1.0, clip=1.0), Phase("lp", 1.0)],
            [True, False],
            "linear probing after full fine-tuning without clipping",
        ),
    ],
)
def test_phases(phases, covered, reason):
    found, schedule = Covers(ANY, ANY, lp=ALL, fft=("flat",), late_lp=("flat",)), Schedule(phases)
    assert found.phases(schedule) == covered
    assert found.refuses_phases(schedule) == (f"{reason} is not covered" if reason else "")
    probing = replace(found, fft=())
    assert re.match("full fine-tuning is not covered|linear probing after", probing.refuses_phases(schedule))


def test_clipping_of_several_outputs_and_batches():
    margin, column = (
        Schedule.lp(time=1.0, clip=1.0, clipping=kind, sample_rate=rate)
        for kind, rate in (("margin", 1.0), ("column", 0.2))
    )
    assert Covers(ANY, ANY).refuses_phases(margin) == "linear probing with margin clipping is not covered"
    assert Covers(ANY, ANY).refuses_phases(column) == "linear probing with column clipping is not covered"
    found = Covers(ANY, ANY, lp=(*ALL, "margin", "column"), outputs=True)
    assert found.refuses_phases(margin) == ""
    assert found.refuses_phases(column) == "sample_rate=0.2 is not covered, only full batches"
    assert replace(found, batches=True).phases(column) == [True]
    several = Problem(np.eye(2), np.eye(2), "linear", "square")
    assert found.refuses(several) == ""
    assert Covers(ANY, ANY).refuses(several) == "K = 2 outputs are not covered, only a scalar head"
    assert str(replace(found, batches=True)).endswith("heads: scalar or K outputs; batches: full or Poisson")
    chain = replace(found, chain=True)
    assert chain.refuses_phases(column).endswith("only full batches: give dt, for the chain in such steps")
    assert chain.at(None) == chain
    assert chain.at(0.1).phases(column) == [True]
    assert found.at(0.1).phases(column) == [False]
    assert str(chain).endswith("batches: full; Poisson with dt")


@pytest.mark.parametrize(
    ("activation", "loss"), [("gelu", "logistic"), ("tanh", "square"), ("relu", "huber"), ("gelu", "huber")]
)
def test_distance_bounds_hold_for_other_networks(activation, loss):
    rng = np.random.default_rng(0)
    problem, weights = strategies.general(rng, activation, loss, n=5, d=3, h=4)
    schedule = Schedule.lp_fft(lp_time=0.25, fft_time=0.5, sigma=0.4, clip=0.5)
    times = [1 / 64, 0.25, 0.5, 0.75]
    run = reference.chain(problem, weights, schedule, 1 / 512, 800, 1, times)
    still = Schedule.lp_fft(lp_time=0.25, fft_time=0.5, clip=0.5)
    mean, error = reference.mean_and_error(
        run.distance2(reference.chain(problem, weights, still, 1 / 512, 1, 0, times))
    )
    kinds: Any = [
        kind for kind, found in table()["approximation_error"].items() if not found.refuses(problem)
    ]
    assert {"paper", "monotone", "lambert"} <= set(kinds)
    assert ("ode" in kinds) == (activation == "relu")
    for kind in kinds:
        band = bounds.approximation_error(problem, weights, schedule, times, kind=kind)
        assert band.valid.all()
        assert (mean <= band.upper + 4 * error).all()
    # a bound for half the noise is too small
    quiet = Schedule.lp_fft(lp_time=0.25, fft_time=0.5, sigma=0.2, clip=0.5)
    for kind in set(kinds) - {"paper"}:
        assert (
            mean[0]
            > bounds.approximation_error(problem, weights, quiet, times, kind=kind).upper[0] + 4 * error[0]
        )
    # linear probing of a convex loss is monotone: constant 0
    probing = Schedule.lp(time=0.25, sigma=0.4, clip=0.5)
    assert (
        mean[:2]
        <= bounds.lipschitz_error(problem, weights, probing, times[:2], constant=0.0).upper + 4 * error[:2]
    ).all()
    wrong = bounds.lipschitz_error(problem, weights, probing, times[:2], constant=-20.0).upper
    assert mean[1] > wrong[1] + 4 * error[1]


def test_bounds_that_rest_on_growth_hold_for_the_huber_loss():
    for seed in range(4):
        problem, weights = strategies.general(np.random.default_rng(seed), loss="huber", n=4, d=2, h=3)
        schedule = Schedule.fft(time=0.5, sigma=0.3, clip=2.0)
        times = [0.25, 0.5]
        run = reference.chain(problem, weights, schedule, 1 / 512, 800, seed, times)
        size, error = reference.mean_and_error((run.W**2).sum((-1, -2)) + (run.v**2).sum(-1))
        upper = bounds.expected_norm(problem, weights, schedule, times).upper
        assert (size <= upper + 4 * error).all()
        tail = bounds.norm_tail(problem, weights, schedule, 0.5, [size[1], 2 * size[1]])
        share = ((run.W[1] ** 2).sum((-1, -2)) + (run.v[1] ** 2).sum(-1))[:, None] >= [size[1], 2 * size[1]]
        assert (share.mean(0) <= tail + 4 * np.sqrt(0.25 / 800)).all()
        loss, error = reference.mean_and_error(run.losses(problem))
        assert bounds.certified_loss(problem, weights, schedule, times).contains(loss, 4 * error)


@pytest.mark.parametrize(("activation", "loss"), [("gelu", "square"), ("tanh", "huber"), ("relu", "huber")])
def test_the_expected_drift_of_other_networks(activation, loss):
    problem, weights = strategies.general(np.random.default_rng(3), activation, loss, n=4, d=3, h=3)
    found = bounds.drift_of_expectation(problem, weights, clip=0.4)
    state = weights.W[..., None], weights.v[:, None]
    dW, dW_clipped = (
        reference.drift(problem, *state, phase)[0][..., 0]
        for phase in (CLIPPED.phases[0], Phase("fft", 1.0, clip=0.4))
    )
    assert found == pytest.approx(dW_clipped @ problem.X.T)
    assert found != pytest.approx(dW @ problem.X.T)


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_statements_on_probing_hold_for_any_features(activation):
    problem, weights = strategies.general(np.random.default_rng(5), activation, "square", n=5, d=3, h=6)
    schedule, times = Schedule.lp(time=0.5, sigma=0.4), [0.1, 0.5]
    run = reference.chain(problem, weights, schedule, 1 / 1024, 1500, 0, times)
    for bound, values in (
        (bounds.lp_expected_loss, run.losses(problem)),
        (bounds.lp_expected_head, (run.v**2).sum(-1)),
    ):
        mean, error = reference.mean_and_error(values)
        exact = bound(problem, weights, schedule, times).upper
        assert (np.abs(mean - exact) <= 4 * error + 5e-3 * exact).all()
        louder = bound(problem, weights, Schedule.lp(time=0.5, sigma=0.6), times).upper
        assert mean[1] < louder[1] - 4 * error[1]
    still = Schedule.lp(time=0.5)
    loss, slack = reference.flow_losses(problem, weights, still, times)
    assert bounds.rates(problem, weights, still, times).contains(loss, slack)
