"""What runs of a grid leave out: tests of a body that was checked, and an evaluation at the start."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from empirical import Recipe, glyphs, mlp  # noqa: E402
from empirical.networks.checked import Checked  # noqa: E402
from empirical.train import network  # noqa: E402
from empirical.train.fine_tuning import finetune  # noqa: E402
from empirical.train.gradients import trial  # noqa: E402

FULL = Recipe("fft", steps=4, batch=20, epsilon=8, lr=0.5)


@pytest.fixture(scope="module")
def task():
    return glyphs(8, train=60).subsample(test=2)


@pytest.fixture
def counts(monkeypatch):
    """How often bodies are checked, by the test."""
    found = {"check_passes": 0, "choose_all": 0}

    def counted(module, name):
        real = getattr(module, name)

        def wrapped(*args, **kwargs):
            found[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    counted(network, "check_passes")
    counted(trial, "choose_all")
    return found


@pytest.mark.parametrize("method", ["lp", "fft", "lp-fft"])
def test_without_the_first_evaluation_the_run_is_the_same(task, method):
    body, recipe = mlp(task.train.shape, (8,)), Recipe(method, steps=4, batch=20, epsilon=8, lr=0.5)
    whole, lean = (finetune(task, body, recipe, evaluations=2, initial=flag) for flag in (True, False))
    assert whole.step.values.tolist() == [0, 2, 4]
    assert lean.step.values.tolist() == [2, 4]
    assert whole.isel(step=slice(1, None)).drop_attrs().equals(lean.drop_attrs())


def test_a_checkpoint_without_the_first_evaluation_resumes(task, tmp_path):
    body = mlp(task.train.shape, (8,))
    expected = finetune(task, body, FULL, evaluations=2, initial=False)

    class Stop(Exception):
        pass

    def stop(done, _):
        if done == 3:
            raise Stop

    options = {"evaluations": 2, "initial": False, "checkpoint": tmp_path / "run.nc"}
    with pytest.raises(Stop):
        finetune(task, body, FULL, progress=stop, **options)
    found = finetune(task, body, FULL, resume=True, **options)
    assert found.drop_attrs().equals(expected.drop_attrs())


def test_a_body_is_tested_once(task, counts):
    checked, body = Checked(), mlp(task.train.shape, (8,))
    first = finetune(task, body, FULL, evaluations=1, checked=checked)
    once = dict(counts)
    assert all(once.values())
    again = finetune(task, body, FULL, evaluations=1, checked=checked)
    assert counts == once
    assert first.equals(again)
    # what other stages train is checked, and so is another body
    finetune(
        task, body, Recipe("bitfit", steps=4, batch=20, epsilon=8, lr=0.5), evaluations=1, checked=checked
    )
    assert counts["choose_all"] == once["choose_all"] + 1
    finetune(task, mlp(task.train.shape, (8,)), FULL, evaluations=1, checked=checked)
    assert counts["check_passes"] == 2 * once["check_passes"]
    # without it, every run tests
    finetune(task, body, FULL, evaluations=1)
    assert counts["check_passes"] == 3 * once["check_passes"]


def test_a_test_that_fails_is_made_again():
    checked, body, tried = Checked(), torch.nn.Identity(), []

    def test():
        tried.append(None)
        raise ValueError("not private")

    for _ in range(2):
        with pytest.raises(ValueError, match="not private"):
            checked.once(body, "passes", test)
    assert np.size(tried) == 2
