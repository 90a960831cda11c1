"""What features leave open: hidden worlds, the hedge over them, and what tells that there is none."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from empirical import plan_share
from empirical.planning.comparison import standard_error
from empirical.planning.hedge import CEILING, HIDDEN, VISIBLE, distance, hidden_world, worlds_of
from empirical.planning.report import text
from empirical.planning.share_plan import HeadRuns
from empirical.planning.stand_in import Settings, Split, StandIn


def features(informative, seed=0, each=60, classes=4, dim=8):
    """Class means of some size plus noise, all positive."""
    random = np.random.default_rng(seed)
    labels = np.arange(classes * each) % classes
    X = np.abs(informative * np.eye(classes, dim)[labels] + random.standard_normal((len(labels), dim)))
    return X, labels


def net(informative=0.5):
    X, labels = features(informative)
    held, held_labels = features(informative, seed=1)
    return StandIn(X, labels, held, held_labels, np.eye(8), None, 4)


def test_a_hidden_world_shows_the_same_features_and_full_fine_tuning_finds_more():
    shown = net()
    hidden = hidden_world(shown, 0.9, np.random.default_rng(0))
    assert np.array_equal(hidden.X @ hidden.W.T, shown.X @ shown.W.T)
    size = [np.sqrt((X**2).sum(1).mean()) for X in (hidden.X[:, 8:], shown.X)]
    assert size[0] == pytest.approx(size[1], rel=0.1)
    how = Settings(steps=60, batch=48.0, noise_multiplier=0.5, clip=1.0)
    seeds = [np.random.SeedSequence(0, spawn_key=(i,)) for i in range(6)]
    there, here = (
        world.run(how, [Split(60, 1.0, 1.0), Split(0, 1.0, 1.0)], seeds) for world in (hidden, shown)
    )
    assert there.loss[0] == pytest.approx(here.loss[0], rel=1e-4)
    gain = there.accuracy[1] - here.accuracy[1]
    assert gain.mean() > 4 * standard_error(gain) > 0


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_hidden_directions_alone_allow_the_accuracy_that_is_asked(classes):
    random = np.random.default_rng(0)
    labels = np.arange(20_000) % classes
    found = {}
    for accuracy in (0.6, 0.9):
        H = distance(accuracy, classes) * np.eye(classes)[labels] + random.standard_normal((20_000, classes))
        found[accuracy] = (H.argmax(1) == labels).mean()
        error = np.sqrt(accuracy * (1 - accuracy) / 20_000)
        assert abs(found[accuracy] - accuracy) < 4 * error
    assert abs(found[0.6] - 0.9) > 0.1


def test_a_known_layer_or_a_source_without_shift_leave_nothing_open():
    random = np.random.default_rng(0)
    weak, strong = net(0.7), net(4.0)
    assert list(worlds_of(weak, layer=True, source=None, random=random)[0]) == [VISIBLE]
    assert list(worlds_of(strong, layer=False, source=features(4.0, seed=3), random=random)[0]) == [VISIBLE]
    open_, said = worlds_of(weak, layer=False, source=None, random=random)
    assert list(open_) == [VISIBLE, HIDDEN]
    assert "nothing tells whether full fine-tuning can help" in said[0]
    assert f"an accuracy of {CEILING:g}" in said[0]
    shifted, said = worlds_of(weak, layer=False, source=features(4.0, seed=3, each=200), random=random)
    assert list(shifted) == [VISIBLE, HIDDEN]
    assert "a probe tells" in said[0]


def test_the_hedge_takes_the_least_mean_regret():
    draws = 16
    jitter = 1e-3 * np.random.default_rng(0).standard_normal(draws)
    here = np.array([0.70, 0.79, 0.80])[:, None] + jitter
    there = np.array([0.95, 0.94, 0.80])[:, None] + jitter
    runs = HeadRuns(
        (here + there) / 2,
        np.ones((3, draws)),
        np.full(3, 0.1),
        1.0,
        np.zeros(3),
        {VISIBLE: here, HIDDEN: there},
        (0.5, 0.5),
    )
    assert runs.regret == pytest.approx([0.05, 0.01, 0.075])
    # neither world's own best
    assert runs.recommended == runs.regret.argmin() == 1
    assert [int(world.mean(1).argmax()) for world in runs.worlds.values()] == [2, 0]
    alone = replace(runs, accuracy=here, worlds={VISIBLE: here}, weights=(1.0,))
    assert alone.recommended == 2


def test_without_a_layer_a_weak_head_start_no_longer_means_probing():
    X, y = features(0.7, each=100)
    how: dict[str, Any] = dict(
        epsilon=8.0, delta=1e-4, steps=40, draws=16, shares=[0.0, 0.5, 1.0], heads=["gaussian"], theory=False
    )
    hedged, sure = (plan_share(X, y, hedge=hedge, **how) for hedge in (True, False))
    assert list(hedged.runs["gaussian"].worlds) == [VISIBLE, HIDDEN]
    assert list(sure.runs["gaussian"].worlds) == [VISIBLE]
    # what it can lose by probing alone is far larger
    assert hedged.runs["gaussian"].regret[-1] > 0.1 > sure.runs["gaussian"].regret[-1]
    assert hedged.share < 1
    assert "mean regret" in " ".join(hedged.caveats)
    # the report says what each world would give, next to their mean
    by_world = hedged.by_world
    assert by_world[HIDDEN] > by_world[VISIBLE]
    assert np.dot([0.25, 0.75], list(by_world.values())) == pytest.approx(hedged.expected[0], abs=0.02)
    said = f"simulation: {by_world[VISIBLE]:.3f} with {VISIBLE}, {by_world[HIDDEN]:.3f} with {HIDDEN}"
    assert said in text(hedged, "")
    assert VISIBLE not in text(sure, "")
