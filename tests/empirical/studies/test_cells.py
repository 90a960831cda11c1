"""Real cells of a grid: they repeat themselves, keep bodies, and see no image that is published."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from empirical.recipe import Recipe
from empirical.studies.grid import TUNING, compute_cell
from empirical.studies.setting import Setting
from tests.empirical.data.published import CIFAR_RECORDS, cifar_files
from tests.empirical.studies.toy import SETTING


def test_a_real_cell_repeats_itself_and_keeps_within_the_budget() -> None:
    recipe = Recipe("lp-fft", steps=4, epsilon=2.0)
    found = compute_cell(SETTING, recipe, 0)
    assert found == compute_cell(SETTING, recipe, 0)
    assert 0 < found["spent"] <= 2
    assert found != compute_cell(SETTING, recipe, 1)
    assert found["test_accuracy"] != compute_cell(SETTING, replace(recipe, lr=9.0), 0)["test_accuracy"]


def test_features_are_measured_where_asked() -> None:
    # without noise, which takes long to calibrate
    recipe = Recipe("lp", steps=1, epsilon=np.inf)
    found = compute_cell(replace(SETTING, features=True), recipe, 0)
    # linear probing leaves the body as it is
    assert found["cka"] == pytest.approx(1, abs=1e-6)
    # by neighbours, pixels of digits are better than any features, and these than chance, on 300 images
    assert found["knn_pixels"] > found["knn_random"] > 0.1 + 5 * (0.09 / 300) ** 0.5
    assert found["knn_pretrained"] == found["knn_accuracy"]
    assert "cka" not in compute_cell(SETTING, recipe, 0)


def test_kept_bodies_are_taken(tmp_path) -> None:
    from empirical.studies.setting import _network

    setting = replace(SETTING, bodies=str(tmp_path / "bodies"))
    made = setting.network(0).state_dict()
    (path,) = (tmp_path / "bodies").glob("*.npz")
    before = path.stat().st_mtime_ns
    _network.cache_clear()
    again = setting.network(0).state_dict()
    assert path.stat().st_mtime_ns == before
    assert all((made[name] == again[name]).all() for name in made)
    assert not all((made[name] == v).all() for name, v in setting.network(1).state_dict().items())


def test_workers_wait_for_a_body_that_another_makes(tmp_path, monkeypatch) -> None:
    import empirical
    from empirical.studies.setting import _network

    made, fine_tuning = [], empirical.pretrain
    monkeypatch.setattr(empirical, "pretrain", lambda *a, **k: (made.append(0), fine_tuning(*a, **k))[1])
    setting = replace(SETTING, bodies=str(tmp_path / "bodies"))
    setting.task(3)

    def work(_: int) -> Any:
        return _network.__wrapped__(setting, 3, None).state_dict()

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(work, range(4))
    assert len(made) == 1
    assert all((first[name] == other[name]).all() for other in others for name in first)


def test_a_task_is_split_anew_for_each_seed() -> None:
    assert not np.array_equal(SETTING.task(0).test.images, SETTING.task(1).test.images)
    assert SETTING.task(0) is SETTING.task(0)


def test_tuning_never_sees_published_test_images(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from empirical.data import binary
    from empirical.train import fine_tuning

    monkeypatch.setattr(binary, "_CIFAR_RECORDS", CIFAR_RECORDS)
    cifar_files(tmp_path / "cifar")
    setting = Setting("cifar10", folder=str(tmp_path / "cifar"), body="mlp", widths=(4,))
    published = setting.task(0)
    assert len(published.train) == 5 * CIFAR_RECORDS
    seen = []

    def watching(task: Any, body: Any, recipe: Recipe, **options: Any) -> Any:
        seen.append(task)
        return finetune(task, body, recipe, **options)

    finetune = fine_tuning.finetune
    monkeypatch.setattr(fine_tuning, "finetune", watching)
    # without noise, which takes long to calibrate
    recipe = Recipe("lp", steps=1, batch=5, epsilon=np.inf)
    for seed in (0, 1, TUNING, TUNING + 1):
        compute_cell(setting, recipe, seed)
    first, second, tuned, other = seen
    assert first is second is published
    for task in (tuned, other):
        assert len(task.test) == round(len(published.train) / 5)
        # every image of the training part once, in one of the two
        both = np.concatenate([task.train.images, task.test.images]).reshape(len(published.train), -1)
        whole = published.train.images.reshape(len(both), -1)
        assert np.array_equal(np.unique(both, axis=0), np.unique(whole, axis=0))
    assert not np.array_equal(tuned.test.images, other.test.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data="mnist"), "data must be one of"),
        (dict(data="cifar10"), "folder must be given with data='cifar10'"),
        (dict(folder="x"), "folder must be left out"),
        (dict(size=9), "size must be left out"),
        (dict(public_classes=("cat",)), "public_classes must be left out"),
        (dict(data="stl10", folder="x", pretrain="simclr"), "pretrain must be 'none' without a public part"),
        (dict(pretrain="none", epochs=3), "epochs must be left out"),
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(device="gpu"), "device must be"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_pretraining_is_on_where_there_is_something_to_train_on() -> None:
    assert Setting().pretrain == Setting("glyphs").pretrain == "supervised"
    assert Setting("stl10", folder="x").pretrain == Setting(weights="w.npz").pretrain == "none"
    assert Setting("stl10", folder="x", public_classes=("cat",)).pretrain == "supervised"
