"""Plans: what they recommend where the answer is known, the noise they state, and how they compare."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bounds import lp_crossover, minimum_lp_share
from empirical import account, plan_share
from empirical.planning import search as planning_search
from empirical.planning.inputs import _cut, some_rows
from empirical.planning.report import text
from empirical.planning.share_plan import HeadRuns, SharePlan
from empirical.planning.stand_in import Settings, Split, StandIn
from empirical.privacy.history import History, plan
from langevin import Weights, collapsed_features, orthogonally_separable

CALM: dict[str, Any] = dict(
    delta=1e-4, draws=4, shares=[0.0, 0.5, 1.0], heads=["gaussian"], hedge=False, theory=False
)


def clusters(classes=4, each=100, dim=8, spread=0.3, seed=0):
    """Points about orthogonal means, all coordinates positive."""
    random = np.random.default_rng(seed)
    labels = np.arange(classes * each) % classes
    return np.abs(np.eye(classes, dim)[labels] + spread * random.standard_normal((len(labels), dim))), labels


# --- where the answer is known ------------------------------------------------------------------


def test_features_that_say_nothing_want_full_fine_tuning():
    X, y = clusters()
    # every neuron sees the sum of the coordinates alone
    found = plan_share(X, y, W=np.full((8, 8), 0.2), epsilon=20.0, **CALM)
    assert found.share < 1
    assert 1.0 not in found.as_good
    assert found.accuracy[-1].mean() == pytest.approx(0.25)


def test_features_that_say_enough_want_probing_in_noise_alone():
    X, y = clusters(dim=32)
    settings = {**CALM, "steps": 40, "draws": 32, "shares": [0.0, 1.0]}

    def gain(epsilon):
        """Of probing alone over none, with its standard error, over three splits."""
        found = [plan_share(5 * X, y, epsilon=epsilon, rng=seed, **settings) for seed in range(3)]
        gains = np.concatenate([plan.accuracy[-1] - plan.accuracy[0] for plan in found])
        return gains.mean(), gains.std(ddof=1) / len(gains) ** 0.5

    (tight, tight_error), (ample, ample_error) = gain(0.3), gain(10.0)
    assert tight > 2.5 * tight_error
    # four times as much at the tight budget
    assert tight - 4 * ample > 2.5 * np.hypot(tight_error, 4 * ample_error)


def collapsed(head, clip):
    """A linear net on samples that all have the same ``y_i x_i``, and its end after some probing."""
    random = np.random.default_rng(1)
    W, x = random.standard_normal((6, 3)), np.array([1.0, 0.0, 0.0])
    labels = np.arange(20) % 2
    X = np.where(labels == 1, 1.0, -1.0)[:, None] * x
    v = head * (W @ x)
    net = StandIn(X, labels, X, labels, W, v, 2, "linear")
    how = Settings(steps=40, batch=20.0, noise_multiplier=0.0, clip=clip)

    def loss(lp_steps, rate):
        return net.run(how, [Split(lp_steps, rate, rate)], [np.random.SeedSequence(0)]).loss[0, 0]

    return net, Weights(W, v), loss


def test_on_a_collapsed_block_the_simulation_agrees_with_theory_that_probing_hurts():
    net, weights, loss = collapsed(head=0.1, clip=1.0)
    rate = 0.02
    found = lp_crossover(net.problem(), weights, time=40 * rate / 20, clip=1.0)
    assert found.case == "fft"
    losses = [loss(lp_steps, rate) for lp_steps in (0, 10, 20, 30, 40)]
    assert (np.diff(losses) > 0).all()


def test_and_with_theory_that_a_short_probing_helps_a_misaligned_head():
    net, weights, loss = collapsed(head=-0.5, clip=1e6)
    times = {}
    for rate in (0.002, 0.2):
        time = 40 * rate / 20
        found = lp_crossover(net.problem(), weights, time=time)
        assert found.case == "lp-helps-above"
        times[rate] = time / found.critical_time
        assert (loss(2, rate) < loss(0, rate)) == (time > found.critical_time)
    # the control: both sides of the critical time were seen
    assert min(times.values()) < 1 < max(times.values())


def test_theory_stands_beside_the_simulation_of_two_classes():
    data = orthogonally_separable(80, 5, spread=0.05, rng=0)
    weights = collapsed_features(data, 8, rng=0)
    found = plan_share(
        data.X, data.y, W=weights.W, v=weights.v, X_test=data.X, y_test=data.y, epsilon=2.0,
        **{**CALM, "theory": True, "steps": 20, "draws": 2},
    )  # fmt: skip
    (advice,) = found.theory.values()
    assert advice.assumptions.hold
    # whatever the noise: at probing's rate, in batches of a tenth
    chain: Any = dict(dt=found.lp_lr / 80, steps=20, clip=1.0)
    expected = minimum_lp_share(data, weights, **chain, sample_rate=0.1, confidence=0.95)
    assert advice.minimum_share[0] == expected.share > minimum_lp_share(data, weights, **chain).share > 0
    assert "sandwich" in advice.curves


def test_theory_of_several_classes_is_of_all_of_them():
    data = orthogonally_separable(80, 5, classes=3, loss="softmax", rng=0)
    weights = collapsed_features(data, 8, rng=0)
    settings = {**CALM, "theory": True, "steps": 20, "draws": 2}
    given: dict[str, Any] = dict(W=weights.W, X_test=data.X, y_test=data.y, epsilon=2.0)
    found = plan_share(data.X, data.y, v=weights.v, **given, **settings)
    (name,) = found.theory
    assert name == "3 classes"
    advice = found.theory[name]
    assert advice.assumptions.hold
    assert not advice.harmless
    chain: Any = dict(dt=found.lp_lr / 80, steps=20, clip=1.0, sample_rate=0.1, confidence=0.95)
    assert advice.minimum_share[0] == minimum_lp_share(data, weights, **chain).share > 0
    zero = plan_share(data.X, data.y, v=np.zeros((8, 3)), **given, **settings)
    (advice,) = zero.theory.values()
    assert advice.harmless
    assert advice.minimum_share[0] == 0
    assert "every head is aligned at the start" in text(zero, "", verbose=True)


# --- privacy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, pytest.param(4.0, marks=pytest.mark.slow)])
def test_the_stated_noise_spends_the_budget(epsilon):
    X, y = clusters(each=20)
    found = plan_share(X, y, epsilon=epsilon, samples=1000, batch=50, steps=30, **CALM)
    report = account(found.history)
    assert 0.995 * epsilon <= report.epsilon <= epsilon
    assert [m.sample_rate for m in found.history.mechanisms] == [0.05] * len(found.history.mechanisms)
    assert found.history.steps == 30
    nu = found.history.mechanisms[0].noise_multiplier
    assert nu is not None
    less = plan(1000, 50, delta=1e-4, steps=30, noise_multiplier=0.97 * nu)
    assert account(less).epsilon > epsilon
    # and it is what the recipe would be run with
    same = found.recipe.history(1000).mechanisms
    assert [m.noise_multiplier for m in same] == pytest.approx([nu] * len(same), rel=5e-3)
    assert [m.steps for m in same] == [phase["steps"] for phase in found.phases]


def test_more_private_samples_mean_less_noise():
    X, y = clusters(each=50)
    few, many = (plan_share(X, y, epsilon=0.2, samples=samples, steps=30, **CALM) for samples in (200, 5000))
    lost = many.accuracy[-1] - few.accuracy[-1]
    error = lost.std(ddof=1) / len(lost) ** 0.5
    assert lost.mean() > 4 * error > 0


# --- the comparison -----------------------------------------------------------------------------


def runs_of(accuracy, loss=None, choice=0.0, lp_lr=1.0):
    accuracy = np.array(accuracy)
    loss = np.ones_like(accuracy) if loss is None else np.array(loss)
    return HeadRuns(accuracy, loss, np.array([0.1, 0.1, np.nan]), lp_lr, np.full(len(accuracy), choice))


def made(accuracy, loss=None, choice=0.0, **others):
    runs: Any = {"gaussian": runs_of(accuracy, loss, choice), **others}
    return SharePlan(np.array([0.0, 0.5, 1.0]), runs, History([], 1e-5), {}, 1.0, 1.0, 10.0, "", ())


def test_shares_are_compared_by_draws():
    # both of the others are 0.01 worse on average: one always, one now and then
    level = np.array([0.3, 0.5, 0.7, 0.9])
    now_and_then = np.array([0.2, -0.2, 0.1, -0.06])
    found = made([level, level - 0.01, level - now_and_then])
    assert found.best == 0
    assert found.as_good.tolist() == [0.0, 1.0]
    assert found.deficit[0] == pytest.approx([0, 0.01, 0.01])
    # within one standard error the larger one is recommended, and no farther
    assert found.share == 1
    assert made([level, level - now_and_then, level - 0.01]).share == 0.5
    assert made([level, level - 0.01, level - 0.2 - now_and_then]).share == 0


def test_a_share_that_lost_a_run_is_not_recommended():
    # one run of accuracy 0 makes the standard error as large as what is lost
    level, lost = np.full(16, 0.8), np.array([0.802] * 15 + [0.0])
    loss = np.ones((3, 16))
    loss[2, -1] = np.inf
    found = made([level, level - 0.1, lost], loss)
    mean, error = found.deficit
    assert mean[2] <= error[2] * (1 + 1e-12)
    assert found.share == 0
    assert found.as_good.tolist() == [0.0]
    # nor is it the best, however good its other runs
    assert made([level, level - 0.1, np.append(np.ones(15), 0.0)], loss).best == 0


def test_of_equal_accuracies_the_lower_loss_is_best():
    same = np.ones((3, 2))
    assert made(same, [[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]).best == 1
    assert made(same, [[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]).best == 2


def test_of_heads_that_noise_does_not_tell_apart_the_first_is_recommended():
    level = np.array([0.3, 0.5, 0.7, 0.9])
    noise = np.array([0.02, -0.02, 0.01, -0.005])
    rows = [level, level - 0.1, level - 0.2]
    near = made(rows, zero=runs_of([row + noise for row in rows]))
    assert (near.head, near.share) == ("gaussian", 0.0)
    # clearly better, at another share; its rates are those of the recipe
    better = runs_of([level - 0.1, level + 0.1 + 0.1 * noise, level - 0.2], lp_lr=3.0)
    found = made(rows, zero=better)
    assert (found.head, found.share, found.lp_lr) == ("zero", 0.5, 3.0)
    assert found.as_good.tolist() == [0.5]
    # not if the choice of its rates may be what makes it so
    unsure = runs_of([level - 0.1, level + 0.1 + 0.1 * noise, level - 0.2], choice=0.1)
    assert made(rows, zero=unsure).head == "gaussian"


def test_probing_is_not_needed_where_some_head_does_without_it():
    level = np.array([0.3, 0.5, 0.7, 0.9])
    probed = [level - 0.1, level, level - 0.05]
    assert made(probed).probing_needed is True
    assert made(probed).unprobed is None
    noise = np.array([0.02, -0.02, 0.01, -0.005])
    found = made(probed, zero=runs_of([level + noise, level - 0.1, level - 0.2]))
    assert (found.probing_needed, found.unprobed) == (False, "zero")
    shares = np.array([0.25, 0.5, 1.0])
    assert replace(found, shares=shares).probing_needed is None


def test_draws_are_made_until_shares_are_told_apart():
    X, y = clusters(dim=32)
    settings = {**CALM, "steps": 20, "draws": 130, "shares": [0.0, 1.0]}

    def planned(resolution):
        return plan_share(X, y, epsilon=1.0, resolution=resolution, **settings)

    coarse = planned(0.5)
    assert coarse.accuracy.shape[1] == planning_search.LEAST
    fine, finest = planned(0.6 * coarse.deficit[1].max()), planned(0.0)
    # in rounds that double, and no further than it takes
    assert fine.accuracy.shape[1] in (16, 32, 64, 128)
    assert fine.deficit[1].max() <= 0.6 * coarse.deficit[1].max()
    assert finest.accuracy.shape[1] == 130
    # the same draws, as far as they go, except for rounding in single precision
    n = planning_search.LEAST
    assert finest.loss[1, :n] == pytest.approx(coarse.loss[1], rel=1e-4)
    assert finest.loss[1, n : 2 * n] != pytest.approx(coarse.loss[1], rel=1e-3)


def test_a_share_that_is_clearly_worse_needs_no_more_draws():
    X, y = clusters()
    settings = {**CALM, "draws": 200, "shares": [0.0, 1.0]}
    found = plan_share(X, y, W=np.full((8, 8), 0.2), epsilon=20.0, resolution=1e-6, **settings)
    mean, error = found.deficit
    assert mean[1] > 4 * error[1] > 4e-6
    assert found.accuracy.shape[1] == planning_search.LEAST


def test_what_limits_a_plan_is_said(monkeypatch):
    X, y = clusters(each=20)
    how = {**CALM, "draws": 2, "resolution": 1e-9}
    plain = " ".join(plan_share(X, y, epsilon=1.0, steps=20, **how).notes)
    assert "after 2 draws shares are compared with the best to" in plain
    assert "largest class alone makes up 25.0%" in plain
    assert "NO share" not in plain
    assert "best rate is the last" not in plain
    monkeypatch.setattr(planning_search, "_FARTHEST", 0)
    small = plan_share(0.1 * X, y, epsilon=10.0, steps=20, **how)
    assert "best rate is the last that was tried, another may be better: " in " ".join(small.notes)
    # labels that nothing tells
    noise = np.random.default_rng(0).permutation(y)
    assert "NO share is better" in " ".join(plan_share(X, noise, epsilon=0.1, steps=20, **CALM).notes)


def test_the_command_is_the_recipe(capsys):
    from empirical.studies import options

    X, y = clusters(each=20)
    for shares in ([0.0, 0.5], [0.5, 0.75], [0.75, 1.0]):
        found = plan_share(X, y, epsilon=1.0, steps=20, **{**CALM, "shares": shares})
        words = found.command.split()
        assert words[:3] == ["python", "-m", "empirical.finetune"]
        args = options.parser().parse_args(words[3:])
        defaults = {"lp_share": None, "lp_lr": None, "drop": 1.0}
        for name, value in defaults.items():
            setattr(args, name, getattr(args, name, value))
        there, here = options.recipe_of(args), found.recipe
        assert there.lr == pytest.approx(here.lr, rel=1e-5)
        assert [s.steps for s in there] == [s.steps for s in here]
        for name in ("method", "lp_share", "steps", "batch", "epsilon", "delta", "clip"):
            assert getattr(there, name) == getattr(here, name)


def test_equal_seeds_plan_alike_and_others_differ():
    X, y = clusters(each=20)
    first, again, other = (plan_share(X, y, epsilon=1.0, steps=20, rng=seed, **CALM) for seed in (1, 1, 2))
    assert (first.loss == again.loss).all()
    assert (first.loss != other.loss).all()


def test_wide_features_are_cut_to_their_main_directions():
    random = np.random.default_rng(0)
    X, X_test = random.standard_normal((2, 40, 3)) @ random.standard_normal((3, 700))
    near, near_test, W, notes = _cut(X, X_test, np.eye(700))
    assert near.shape[1] < 100
    assert "100.0%" in notes[0]
    # features of low rank lose nothing
    assert near @ W.T == pytest.approx(X, abs=1e-8 * np.abs(X).max())
    assert near_test @ W.T == pytest.approx(X_test, abs=1e-8 * np.abs(X).max())
    full = random.standard_normal((200, 700))
    near, _, W, notes = _cut(full, full, np.eye(700))
    assert np.abs(near @ W.T - full).max() > 0.1
    assert "100.0%" not in notes[0]


def test_some_rows_hold_every_class():
    labels = np.repeat([0, 1, 2], [900, 99, 1])
    kept = some_rows(labels, 100, np.random.default_rng(0))
    assert len(np.unique(kept)) == 100
    assert set(labels[kept]) == {0, 1, 2}
    # otherwise in their shares
    assert (labels[kept] == 1).sum() < 25


@pytest.mark.parametrize("clip", [1e-21, 1e21])
def test_clips_out_of_the_range_of_the_simulation_are_refused(clip):
    X, y = clusters(each=20)
    with pytest.raises(ValueError, match=r"clip must lie in \[1e-20, 1e20\], got 1e[-+]21"):
        plan_share(X, y, epsilon=1.0, clip=clip, **CALM)
    # within it, the unit of the clip alone changes nothing
    how = {**CALM, "steps": 10}
    small, smaller = (plan_share(X, y, epsilon=1.0, clip=c, **how) for c in (1e-15, 1e-18))
    assert small.loss == pytest.approx(smaller.loss, rel=1e-4)


def test_negative_features_get_a_linear_map_on_top():
    X, y = clusters(each=20)
    assert "relu" in plan_share(X, y, epsilon=1.0, steps=10, **CALM).simulated
    found = plan_share(X - 0.5, y, epsilon=1.0, steps=10, **CALM)
    assert "linear" in found.simulated
    assert any("negative" in note for note in found.notes)
