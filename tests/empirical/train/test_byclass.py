"""Each class's accuracy and the confusions, and how often features are computed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from empirical.data.images import Images, Part
from empirical.features.watch import FeatureWatch
from empirical.networks.bodies import mlp
from empirical.train.by_class import ByClass, mistakes
from empirical.train.fine_tuning import FineTuning, finetune
from empirical.train.network import Network
from langevin.store import files
from tests.empirical.train.tasks import BODY, TASK, quick


def test_counts_are_those_of_the_model() -> None:
    tuning = FineTuning(TASK, BODY, quick("lp-fft"), rng=0, evaluations=3)
    run = tuning.run()
    labels = TASK.test.labels
    with torch.no_grad():
        guessed = tuning.model.eval()(torch.from_numpy(TASK.normalised(TASK.test))).argmax(1).numpy()
    for i, name in enumerate("abc"):
        for j, other in enumerate("abc"):
            count = ((labels == i) & (guessed == j)).sum()
            assert run.confusion.sel({"class": name, "predicted": other}) == count
        share = (guessed == labels)[labels == i].mean()
        assert run.class_accuracy.sel({"class": name}).values[-1] == share
    # rows are what is true
    assert run.confusion.sum("predicted").values.tolist() == TASK.test.counts.tolist()
    weighted = (run.class_accuracy * TASK.test.counts / len(labels)).sum("class")
    np.testing.assert_allclose(weighted, run.test_accuracy, rtol=1e-6)


def test_a_class_without_test_images_has_no_accuracy() -> None:
    test = Part(TASK.test.images[:4], [0, 1, 0, 1], TASK.test.classes)
    run = finetune(Images(TASK.train, test), BODY, quick("lp"), evaluations=1)
    assert np.isfinite(run.class_accuracy.values[:, :2]).all()
    assert np.isnan(run.class_accuracy.values[:, 2]).all()


def test_the_commonest_mistakes() -> None:
    records = ByClass(["a", "b", "c"], 1)
    records.add(0, torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 1, 0, 2, 2, 2]))
    variables: Any = records.variables() | {}
    import xarray as xr

    run = xr.Dataset(variables, records.coordinates())
    first = {"class": "a", "taken for": "b", "images": 2}
    assert mistakes(run, 5) == [first, {"class": "b", "taken for": "c", "images": 1}]
    assert mistakes(run, 1) == [first]


def test_names_that_files_cannot_hold_are_escaped(tmp_path: Any) -> None:
    names = ["caf\udce9", "a\0b", "plain"]
    train, test = (Part(p.images, p.labels, names) for p in (TASK.train, TASK.test))
    task = Images(train, test)
    run = finetune(task, BODY, quick("lp"), evaluations=1)
    for suffix in (".nc", ".zarr"):
        found = files.load(files.save(run, tmp_path / f"run{suffix}"))
        assert found["class"].values.tolist() == ["caf\\udce9", "a\\0b", "plain"]


@pytest.mark.parametrize(("method", "times"), [("lp", 2), ("lp-fft", 2 + 2 * 3), ("fft", 2 + 2 * 6)])
def test_features_of_a_frozen_body_are_computed_once(
    monkeypatch: pytest.MonkeyPatch, method: str, times: int
) -> None:
    features, calls = Network._features, []
    monkeypatch.setattr(Network, "_features", lambda *a: calls.append(1) or features(*a))
    options = {"head": "prototype"} if method == "lp" else {}
    kept = finetune(TASK, mlp(TASK.train.shape, (8,)), quick(method, **options), rng=0, evaluations=6)
    assert len(calls) == times
    # recomputed each time, they are the same
    monkeypatch.setattr(Network, "features", lambda network, part: network._features(network.data[part][0]))
    again = finetune(TASK, mlp(TASK.train.shape, (8,)), quick(method, **options), rng=0, evaluations=6)
    assert again.equals(kept)
    assert len(calls) > 2 * times or method == "fft"


def test_watched_features_of_a_frozen_body_are_computed_once() -> None:
    bodies = []

    class Watch(FeatureWatch):
        def __call__(self, body: nn.Module, head: nn.Linear | None = None) -> dict[str, float]:
            bodies.append(body)
            return super().__call__(body, head)

    def watched(watch: Any) -> Any:
        return finetune(TASK, BODY, quick("lp-fft"), rng=0, evaluations=6, watch=watch)

    run = watched(Watch(TASK, BODY))
    # at the start, and at the three evaluations after steps of the body
    assert len(bodies) == 4
    whole = FeatureWatch(TASK, BODY)
    assert watched(lambda body, head: whole(body, head)).equals(run)
