"""Bodies of timm and transformers with weights from a local file or folder, fine-tuned end to end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from empirical import Recipe, Setting, glyphs  # noqa: E402
from empirical.networks.by_name import body  # noqa: E402
from empirical.studies.grid import compute_cell  # noqa: E402
from empirical.train.fine_tuning import FineTuning  # noqa: E402

SIDE, MEAN, STD = 32, 0.25, 0.5


@dataclass(frozen=True)
class Local:
    """A body and where its weights are.

    Attributes
    ----------
    name, weights : str
    options : tuple of (str, value)
    features : callable
        From images to features, by the library that made the weights.
    """

    name: str
    weights: str
    options: tuple
    features: Any


def _of_timm(folder: Path, name: str, **options: Any) -> Local:
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    save = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(1)
    made = timm.create_model(name, in_chans=1, num_classes=0, **options)
    path = folder / "weights.safetensors"
    save(made.state_dict(), path)
    given = tuple((key, value) for key, value in options.items() if key != "img_size")
    return Local(f"timm:{name}", str(path), given, made.eval())


def _of_transformers(folder: Path, kind: str, **options: Any) -> Local:
    transformers = pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, num_channels=1, **options)
    made = transformers.AutoModelForImageClassification.from_config(config)
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [MEAN], "image_std": [STD]}))
    made = made.eval()
    # where a classifier has its head, the features
    made.classifier = torch.nn.Identity()
    return Local(f"hf:{kind}", str(folder), (), lambda x: made(x).logits.flatten(1))


KINDS = {
    "timm resnet": lambda folder: _of_timm(folder, "resnet18"),
    "timm vit": lambda folder: _of_timm(folder, "vit_tiny_patch16_224", img_size=SIDE, patch_size=8),
    "hf vit": lambda folder: _of_transformers(
        folder,
        "vit",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    ),
    "hf resnet": lambda folder: _of_transformers(
        folder, "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
}


@pytest.fixture(params=KINDS)
def local(request, tmp_path):
    return KINDS[request.param](tmp_path)


def test_the_weights_are_those_of_the_file(local):
    made: Any = body(local.name, (1, SIDE, SIDE), weights=local.weights, **dict(local.options)).eval()
    x = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = made(x), local.features(x)
        torch.testing.assert_close(found, expected)
    assert found.std(0).max() > 0
    assert made.scale == ((MEAN,), (STD,)) if local.name.startswith("hf") else made.scale is None


def share(p: Any, before: Any) -> float:
    """Share of the entries that are where they were."""
    return (p == before).float().mean().item()


def test_all_of_it_trains_with_clipped_gradients(local):
    """The choice of the engine compares its gradients with one backward pass per sample."""
    task = glyphs(SIDE, train=40).subsample(test=2)
    made: Any = body(local.name, task.train.shape, weights=local.weights, **dict(local.options))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    recipe = Recipe("fft", steps=2, batch=20, epsilon=8, delta=1e-4, lr=0.05)
    tuning = FineTuning(task, made, recipe, rng=0, evaluations=1)
    run = tuning.run()
    assert json.loads(run.attrs["engines"])["fft"] in ("ghost", "hooks", "functorch")
    # noise reaches every entry of what trains, except for changes that rounding takes away
    trained = {name: p for name, p in tuning.model.body.named_parameters() if p.requires_grad}
    still = [name for name, p in trained.items() if name in before and share(p, before[name]) > 1e-3]
    assert len(trained.keys() & before.keys()) > 5
    assert not still
    assert np.isfinite(run.test_loss).all()
    # the body that was given stays as it is
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_cell_of_a_grid(local):
    setting = Setting(
        "glyphs", size=SIDE, images=40, body=local.name, options=local.options, weights=local.weights
    )
    recipe = Recipe("lp-fft", steps=4, batch=20, epsilon=8, delta=1e-4, lr=0.05, lp_lr=0.5)
    first, again = compute_cell(setting, recipe, 0), compute_cell(setting, recipe, 0)
    assert first == again
    assert first != compute_cell(setting, recipe, 1)
