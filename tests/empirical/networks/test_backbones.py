"""Bodies and the head on them: shapes, seeds, what is refused."""

import builtins
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from empirical.networks import pretrained  # noqa: E402
from empirical.networks.bodies import Classifier, convnet, features_of, mlp  # noqa: E402
from empirical.networks.by_name import body  # noqa: E402


def values(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("side", [8, 9, 16, 32, 64])
def test_shapes(side):
    for name in ("mlp", "conv"):
        made = body(name, (3, side, side))
        assert Classifier(made, 5)(torch.zeros(2, 3, side, side)).shape == (2, 5)
        assert features_of(made) == 128


def test_a_chain_of_linear_layers():
    made: Any = mlp((1, 4, 4), (8, 2))
    assert isinstance(made, nn.Sequential)
    assert [type(layer) for layer in made] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert not any(isinstance(layer, nn.ReLU) for layer in mlp((1, 4, 4), activation="linear"))


def test_the_network_of_the_theory():
    model: Any = Classifier(mlp((1, 2, 3), (5,), bias=False), 1)
    x = torch.linspace(-1, 1, 12).view(2, 1, 2, 3)
    W, v = model.body[1].weight, model.head.weight
    torch.testing.assert_close(model(x), torch.relu(x.flatten(1) @ W.T) @ v.T)
    assert len(list(model.parameters())) == 2


@pytest.mark.parametrize("make", [mlp, convnet])
def test_seeds(make):
    state = torch.random.get_rng_state()
    first, again, other = make((1, 8, 8), rng=3), make((1, 8, 8), rng=3), make((1, 8, 8), rng=4)
    assert torch.equal(values(first), values(again))
    assert not torch.equal(values(first), values(other))
    # nobody else's draws change
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: body("resnet", (1, 8, 8)), "'timm:<model>' or 'hf:<model>', got 'resnet'"),
        (lambda: body("mlp", (1, 8, 8), weights="hub"), "weights must be None for 'mlp'"),
        (lambda: body("timm:resnet18", (3, 8, 8), widths=(2,)), "widths must be None"),
        (lambda: mlp((1, 8, 8), ()), "widths must hold"),
        (lambda: mlp((1, 8, 8), activation="softplus"), "activation must be one of"),
        (lambda: convnet((1, 8, 8), (12,)), "multiples of groups=8, got 12"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_body_says_its_features():
    with pytest.raises(TypeError, match="'features', got Linear"):
        Classifier(nn.Linear(2, 2), 2)


@pytest.mark.parametrize("name", ["timm:resnet18", "hf:vit"])
def test_without_the_library(name, monkeypatch):
    real = builtins.__import__

    def absent(module, *args, **kwargs):
        if module in ("timm", "transformers"):
            raise ImportError(f"No module named {module!r}")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="install the extra 'vision'"):
        body(name, (3, 32, 32))


def test_weights_of_timm(tmp_path):
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    save = pytest.importorskip("safetensors.torch").save_file
    shape, path = (3, 32, 32), tmp_path / "weights.safetensors"
    made = timm.create_model("resnet18")
    save(made.state_dict(), path)
    loaded: Any = body("timm:resnet18", shape, weights=path)
    own = made.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in loaded.network.state_dict().items())
    fresh: Any = body("timm:resnet18", shape)
    assert not torch.equal(fresh.network.conv1.weight, own["conv1.weight"])
    assert torch.equal(values(fresh), values(body("timm:resnet18", shape)))
    with pytest.raises(ValueError, match=r"weights in .* must hold"):
        body("timm:resnet34", shape, weights=path)
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        body("timm:resnet18", shape, weights=tmp_path / "weights.pth")


def test_the_hub_gives_safetensors(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    hub = pytest.importorskip("huggingface_hub")
    save = pytest.importorskip("safetensors.torch").save_file
    made = timm.create_model("resnet18")
    save(made.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo, file):
        asked.append(file)
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    found: Any = body("timm:resnet18", (3, 32, 32), weights="hub")
    assert torch.equal(found.network.conv1.weight, made.conv1.weight)
    assert asked == ["model.safetensors"]
    known = timm.get_pretrained_cfg("resnet18")
    assert found.scale == (known.mean, known.std)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("{}", None),
        ('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}', ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))),
    ],
)
def test_a_folder_states_the_scale_of_its_pretraining(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    assert pretrained._folder_scale(tmp_path, 3) == expected
    grey = pretrained._folder_scale(tmp_path, 1)
    assert grey == (expected and pytest.approx((0.4, 0.2)))


@pytest.mark.parametrize("text", ["{", "[]", '{"image_mean": 0.5, "image_std": 0.5}'])
def test_a_folder_that_states_no_scale_is_refused(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"must have a readable preprocessor_config\.json"):
        pretrained._folder_scale(tmp_path, 3)


def test_weights_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    made = transformers.ViTForImageClassification(config)
    made.save_pretrained(tmp_path)
    found: Any = body("hf:vit", (3, 16, 16), weights=tmp_path).eval()
    x = torch.rand(2, 3, 16, 16)
    # a classifier has no pooler: the features are those that its head saw
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(x).logits, made.classifier(found(x)))
