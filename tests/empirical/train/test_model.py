"""Models on disk: they predict as what was trained, and a file that lies is refused by its name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import empirical
from empirical import WeightsError, account
from empirical.data.images import Images
from empirical.data.rows import Rows
from empirical.networks.bodies import Body, Classifier, convnet, layer, mlp
from empirical.train import model
from empirical.train.fine_tuning import FineTuning
from tests.empirical.train.tasks import SHAPE, TASK, quick

PLAIN = Images(TASK.train, TASK.test)


class Normed(nn.Module):
    """A body of the caller's own, with batch normalisation."""

    features = 5

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), act(), nn.AdaptiveMaxPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).flatten(1)


def normed() -> Normed:
    body = Normed()
    # statistics of a pre-training
    with torch.no_grad():
        body(torch.rand(20, *SHAPE))
    return body


def tuned(body: nn.Module, method: Any = "lp-fft", task: Images = TASK, rng: Any = 0) -> FineTuning:
    tuning = FineTuning(task, body, quick(method, steps=4), rng=rng, evaluations=1)
    tuning.run()
    return tuning


@pytest.fixture(scope="module")
def trained() -> FineTuning:
    return tuned(mlp(SHAPE, (8, 6)))


@pytest.fixture
def saved(trained: FineTuning, tmp_path: Path) -> Path:
    return empirical.save(tmp_path / "net.safetensors", trained)


def outputs(tuning: FineTuning, task: Images) -> np.ndarray:
    pixels = task.normalised(task.test) if task.public else 2 * task.test.images - np.float32(1)
    with torch.no_grad():
        return torch.softmax(tuning.model.eval()(torch.from_numpy(pixels)), 1).numpy()


@pytest.mark.parametrize(
    ("body", "method", "task"),
    [
        (mlp(SHAPE, (8, 6)), "lp-fft", TASK),
        (mlp(SHAPE, (8,), activation="linear", bias=False), "lora", TASK),
        (convnet(SHAPE, (8, 16), groups=4), "lora", PLAIN),
        (convnet(SHAPE, (8,), groups=2), "bitfit", PLAIN),
    ],
)
def test_it_predicts_as_it_was_trained(body: nn.Module, method: str, task: Images, tmp_path: Path) -> None:
    tuning = tuned(body, method, task)
    found = empirical.load(empirical.save(tmp_path / "net.safetensors", tuning))
    expected = outputs(tuning, task)
    np.testing.assert_array_equal(found.probabilities(task.test), expected)
    np.testing.assert_array_equal(found.probabilities(task.test.images), expected)
    named = np.array(["a", "b", "c"])[expected.argmax(1)]
    assert found.predict(task.test).tolist() == named.tolist()
    # normalised once more, they would be others
    assert not np.allclose(found.probabilities(task.test.images / 2), expected)
    assert found.history == tuning._history
    assert found.classes == ("a", "b", "c")
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_body_of_the_callers_own(tmp_path: Path) -> None:
    tuning = tuned(normed(), "lora")
    path = empirical.save(tmp_path / "net.safetensors", tuning)
    with pytest.raises(WeightsError, match=r"net.safetensors does not say how to make its body: pass body"):
        empirical.load(path)
    own = Normed()
    before = {name: v.clone() for name, v in own.state_dict().items()}
    found = empirical.load(path, own)
    np.testing.assert_array_equal(found.probabilities(TASK.test), outputs(tuning, TASK))
    assert all(torch.equal(v, before[name]) for name, v in own.state_dict().items())
    with pytest.raises(WeightsError, match="outputs differ from this body"):
        empirical.load(path, Normed(nn.Tanh))
    with pytest.raises(WeightsError, match=r"another architecture: '.*' is .* there and .* in the body"):
        empirical.load(path, mlp(SHAPE, (5,)))


def test_a_body_that_was_changed_is_not_made_from_its_name(tmp_path: Path) -> None:
    body = mlp(SHAPE, (8,))
    body.append(nn.Tanh())
    path = empirical.save(tmp_path / "net.safetensors", tuned(body))
    with pytest.raises(WeightsError, match="does not say how to make its body"):
        empirical.load(path)
    empirical.load(path, Body(*mlp(SHAPE, (8,)), nn.Tanh(), features=8))


def test_the_record(saved: Path, trained: FineTuning) -> None:
    found = empirical.load(saved)
    assert found.record["noise"] == "from a seed"
    assert found.record["recipe"]["method"] == "lp-fft"
    assert "epsilon 0.9" in str(account(found.history))
    # who knows the key can take the noise off
    data = saved.read_bytes()
    assert not any(str(int(word)).encode() in data for word in trained._streams.key)
    assert not any(word.tobytes() in data for word in trained._streams.key)
    fresh = empirical.load(empirical.save(saved, tuned(mlp(SHAPE, (8, 6)), rng=None)))
    assert "entropy" in fresh.record["noise"]


def test_images_are_checked(saved: Path) -> None:
    found = empirical.load(saved)
    with pytest.raises(ValueError, match=r"images must be of shape \(1, 6, 6\), got \(1, 5, 6\)"):
        found.predict(np.zeros((2, 1, 5, 6)))
    with pytest.raises(TypeError, match=r"floats in \[0, 1\] or bytes"):
        found.predict(np.zeros((2, 1, 6, 6), np.int16))
    with pytest.raises(ValueError, match="must have the shape"):
        found.predict(np.zeros((1, 6, 6)))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        found.predict(np.full((1, 1, 6, 6), np.nan))


def test_what_cannot_be_saved(trained: FineTuning, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must end in .safetensors, got '.*net.pt'"):
        empirical.save(tmp_path / "net.pt", trained)
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(WeightsError, match="must be a file"):
        empirical.save(tmp_path / "a.safetensors", trained)
    wild = tuned(mlp(SHAPE, (8, 6)))
    with torch.no_grad():
        wild.model.head.weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"saved, got NaN or infinity in 'head.weight'"):
        empirical.save(tmp_path / "net.safetensors", wild)
    assert not (tmp_path / "net.safetensors").exists()


# ---- damage and lies


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as raised:
        empirical.load(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_other_files_are_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        saved.write_bytes(whole[:size])
        assert "damaged" in refused(saved)
    for at in (20, whole.index(b"mean") + 12, len(whole) - 3):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "damaged" in refused(saved) or "without a record" in refused(saved)
    torch.save({"a": Boom()}, saved)
    assert "damaged" in refused(saved)
    save_file({"a": torch.zeros(2)}, saved)
    assert "without a record" in refused(saved)
    assert "there is no file" in refused(tmp_path / "none.safetensors")
    assert "there is no file" in refused(tmp_path)


class Boom:
    """Ends the test if it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


def forged(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Change the record of a file, with a digest that fits."""
    kept = load_file(path) | (tensors or {})
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
    for name, value in changes.items():
        at = record
        *outer, last = name.split("__")
        for key in outer:
            at = at[key]
        at[last] = value
    text = json.dumps(record)
    save_file(kept, path, {"record": text, "digest": model._digest(text, kept)})


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": 2}, "must be of format 1, got 2"),
    "classes that are one": ({"classes": ["a", "a", "c"]}, "classes must be different names"),
    "fewer classes": ({"classes": ["a", "b"]}, r"'head.weight' is torch.float32 of shape \(3, 6\) there"),
    "no scale": ({"std": [0.0]}, "mean and std"),
    "two channels": ({"mean": [0.0, 0.0]}, "mean and std"),
    "a shape of two": ({"shape": [6, 6]}, "three sizes"),
    "a huge image": ({"shape": [1, 10**6, 10**6]}, "at most"),
    "adapters": ({"rank": 2}, "another architecture"),
    "a rank of 0": ({"rank": 0}, "rank must be at least 1"),
    "no mechanism": ({"history": {}}, "record"),
    "a delta of 2": ({"history__delta": 2.0}, "delta must be below 1"),
    "other widths": ({"body__widths": [6, 8]}, "another architecture"),
    "huge widths": ({"body__widths": [10**12]}, "cannot be made"),
    "widths of text": ({"body__widths": ["a"]}, "cannot be made"),
    "another activation": ({"body__options__activation": "linear"}, "another architecture"),
    "another scale": ({"std": [5.0]}, "outputs differ"),
    "an unknown option": ({"body__options__bogus": 1}, "cannot be made"),
    "a file for weights": (
        {"body__name": "timm:resnet18", "body__options": {"checkpoint_path": "a.pth"}},
        "could",
    ),
    "pretrained": (
        {"body__name": "timm:resnet18", "body__options": {"pretrained": True}},
        "'pretrained' could",
    ),
    "a hub": ({"body__name": "hf:somebody/model"}, r"empirical.body\('hf:somebody/model', \(1, 6, 6\)"),
    "timm's hub": ({"body__name": "timm:hf-hub:somebody/model"}, "a name on a hub"),
    "a configuration": ({"body__name": "hf:vit", "body__weights": "folder"}, "comes from a folder or a hub"),
    "a body of text": ({"body": "mlp"}, "cannot be made"),
    "a list": ({"body": [1]}, "cannot be made"),
    "no body": ({"body": None}, "does not say how"),
}


@pytest.mark.parametrize("lie", LIES)
def test_records_that_lie_are_refused(saved: Path, lie: str) -> None:
    forged(saved)
    empirical.load(saved)
    changes, said = LIES[lie]
    forged(saved, **changes)
    with pytest.raises(WeightsError, match=said):
        empirical.load(saved)
    assert refused(saved)


def test_tensors_that_lie_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    weight = load_file(saved)["head.weight"]
    for tensors, said in (
        ({"head.weight": weight * torch.nan}, "not finite"),
        ({"head.weight": weight.double()}, "another architecture: 'head.weight' is torch.float64"),
        ({"more": weight}, "another architecture: 'more' is"),
        ({"head.weight": weight + 1}, "outputs differ"),
    ):
        saved.write_bytes(whole)
        forged(saved, tensors)
        assert said in refused(saved)


def test_the_digest_covers_names_kinds_and_values() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    digests = {
        model._digest("", tensors),
        model._digest("x", tensors),
        model._digest("", {"a": tensors["b"], "b": tensors["a"]}),
        model._digest("", {"a": torch.zeros(1, 2), "b": torch.ones(2)}),
        model._digest("", {"a": torch.zeros(2, dtype=torch.int32), "b": torch.ones(2)}),
    }
    assert len(digests) == 5
    assert hashlib.sha256().digest_size * 2 == len(digests.pop())


def test_a_classifier_is_what_comes_back(saved: Path) -> None:
    found = empirical.load(saved)
    assert isinstance(found.network, Classifier)
    assert not found.network.training


@pytest.mark.parametrize("W", [None, np.eye(3, 4)])
def test_a_model_of_features_takes_feature_vectors(tmp_path, W):
    rng = np.random.default_rng(0)
    train, test = (
        Rows(5 * rng.standard_normal((n, 1, 1, 4)).astype(np.float32), np.arange(n) % 2, ("cat", "dog"))
        for n in (20, 6)
    )
    tuning = FineTuning(Images(train, test), layer((1, 1, 4), W), quick("fft"), rng=0)
    tuning.run()
    model = empirical.load(empirical.save(tmp_path / "rows.safetensors", tuning))
    with torch.no_grad():
        expected = tuning.model(torch.tensor(test.images)).argmax(1)
    assert model.predict(test.images).tolist() == np.array(["cat", "dog"])[expected].tolist()
