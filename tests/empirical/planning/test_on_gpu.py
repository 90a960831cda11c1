"""Runs by torch, on a GPU where there is one: the same steps, noise and batches as the compiled ones."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from empirical.planning import on_gpu
from empirical.planning.comparison import standard_error
from empirical.planning.on_gpu import run_on
from empirical.planning.settings import PlanSettings
from empirical.planning.stand_in import Settings, Split
from tests.empirical.planning.test_standin import LABELS, V, net
from tests.langevin.engine.devices import GPU

where = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
SPLITS = [Split(0, 0.5, 0.3), Split(6, 0.5, 0.3), Split(15, 0.5, 0.3), Split(20, 0.5, 0.3)]


def streams(count):
    return [np.random.SeedSequence(3, spawn_key=(draw,)) for draw in range(count)]


def of(classes, **changes):
    labels = LABELS % classes
    return net(**{"v": None, "labels": labels, "labels_test": labels, "classes": classes, **changes})


@where
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("classes", [2, 3])
def test_without_noise_and_batches_it_is_the_compiled_run(classes, activation, where):
    how = Settings(steps=20, batch=30.0, noise_multiplier=0.0, clip=0.4)
    tried = of(classes, activation=activation)
    here, there = tried.run(how, SPLITS, streams(3)), run_on(where, tried, how, SPLITS, streams(3))
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
    assert there.accuracy == pytest.approx(here.accuracy)
    # the control: another clip is another run
    other = run_on(where, tried, replace(how, clip=0.3), SPLITS, streams(3))
    assert np.median(abs(other.loss / here.loss - 1)) > 1e-3


@where
@pytest.mark.parametrize("classes", [2, 3])
def test_noise_and_batches_have_the_same_law(classes, where):
    # fewer rows than there are samples
    how = Settings(steps=20, batch=8.0, noise_multiplier=2.0, clip=0.7, samples=120)
    tried = of(classes, v=V[:classes] if classes > 2 else V[0])

    def scores(a, b):
        """Differences of mean and spread of the loss's logarithm in standard errors."""
        a, b = np.log(a), np.log(b)
        centre = a.mean(1, keepdims=True)
        pairs = ((a, b), (abs(a - centre), abs(b - centre)))
        return np.array(
            [abs(x.mean(1) - y.mean(1)) / np.hypot(standard_error(x), standard_error(y)) for x, y in pairs]
        )

    here = tried.run(how, SPLITS, streams(1000)).loss
    assert scores(here, run_on(where, tried, how, SPLITS, streams(1000)).loss).max() < 4.5
    # the controls: noise that is larger, and larger batches
    for change in ({"noise_multiplier": 3.0}, {"batch": 20.0}):
        other = run_on(where, tried, replace(how, **change), SPLITS, streams(1000)).loss
        assert scores(here, other).max() > 4.5


@where
def test_a_draw_is_the_same_in_all_splits_and_with_other_draws(where):
    how = Settings(steps=20, batch=8.0, noise_multiplier=1.0, clip=0.7)
    tried = of(3)
    together = run_on(where, tried, how, [*SPLITS, Split(20, 0.5, 9.0)], streams(5))
    assert together.loss[3] == pytest.approx(together.loss[4], rel=1e-6)
    alone = run_on(where, tried, how, SPLITS[1:2], streams(5)[2:3])
    assert alone.loss.item() == pytest.approx(together.loss[1, 2], rel=1e-4)
    assert len(np.unique(together.loss[:4].round(6))) == 20


def test_random_numbers_of_probing_are_drawn_block_by_block(monkeypatch):
    happened = []

    def watched(name, what):
        real = getattr(on_gpu._Runs, name)

        def call(self, *arguments):
            happened.append(what(*arguments))
            return real(self, *arguments)

        monkeypatch.setattr(on_gpu._Runs, name, call)

    watched("_drawn", lambda start, kind, *_: (start, kind))
    watched("_probe", lambda *_: "step")
    how = Settings(steps=20, batch=8.0, noise_multiplier=1.0, clip=0.7)
    run_on("cpu", of(3), how, [Split(20, 0.5, 0.3)], streams(2))
    blocks = [[(start, kind) for kind in (on_gpu._BATCHES, on_gpu._HEAD)] for start in (0, 16)]
    assert happened == [*blocks[0], *["step"] * 16, *blocks[1], *["step"] * 4]


def test_a_net_is_copied_to_a_device_once_and_its_memory_is_free_with_it(monkeypatch):
    how = Settings(steps=2, batch=8.0, noise_multiplier=1.0, clip=0.7)
    copies, real = [], on_gpu._Data

    def copied(*arguments):
        found = real(*arguments)
        copies.append(weakref.ref(found))
        return found

    monkeypatch.setattr(on_gpu, "_Data", copied)
    tried = of(3)
    for _ in range(2):
        run_on("cpu", tried, how, SPLITS[:1], streams(1))
    gc.collect()
    assert [copy() is not None for copy in copies] == [True]
    del tried
    gc.collect()
    assert copies[0]() is None


@where
def test_what_leaves_the_range_is_right_nowhere(where):
    how = Settings(steps=20, batch=30.0, noise_multiplier=0.0, clip=1e20)
    found = run_on(where, of(3), how, [Split(0, 1.0, 1e30), Split(0, 1.0, 1e-3)], streams(2))
    assert np.isinf(found.loss[0]).all()
    assert (found.accuracy[0] == 0).all()
    assert np.isfinite(found.loss[1]).all()


def test_a_device_that_is_not_there_is_named():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    how = Settings(steps=2, batch=30.0, noise_multiplier=0.0, clip=1.0)
    with pytest.raises(ValueError, match="device must be 'cpu', as torch finds no GPU"):
        of(3, device="cuda").run(how, SPLITS[:1], streams(1))
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda'"):
        PlanSettings(epsilon=1.0, device="gpu")
