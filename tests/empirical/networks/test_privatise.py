"""Networks made fit for DP-SGD: the same function, right gradients of each sample, nothing remembered."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")
from opacus.grad_sample import GradSampleModule  # noqa: E402
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # noqa: E402
    GradSampleModuleFastGradientClipping,
)
from torch import nn  # noqa: E402

from empirical.networks.bodies import Classifier, convnet, mlp  # noqa: E402
from empirical.networks.by_name import body  # noqa: E402
from empirical.networks.check import NotPrivateError, check_private  # noqa: E402
from empirical.networks.private import FixedNorm, make_private  # noqa: E402

# sums in single precision, against double: some hundred roundings of the largest term at most
CLOSE = 100 * torch.finfo(torch.float32).eps
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


class NormAct(nn.BatchNorm2d):
    """Batch normalisation that carries its activation, as timm has it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, input):
        return self.act(self.drop(super().forward(input)))


class Frozen(nn.Module):
    """Batch normalisation made of buffers, as torchvision has it."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, 0.5 + torch.rand(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Block(nn.Module):
    """Two convolutions with a shortcut that is added in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return y


class Last(nn.Module):
    """Put channels last in memory, as a LayerNorm over channels does."""

    def forward(self, x):
        return x.contiguous(memory_format=torch.channels_last)


class Token(nn.Module):
    """A raw parameter next to a layer."""

    def __init__(self, features):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(features)), nn.Linear(features, features)

    def forward(self, x):
        return self.layer(x + self.token)


def frozen(body):
    return [name for name, p in body.named_parameters() if not p.requires_grad]


def toy(seed=0):
    """A body with everything that stands in the way, and running statistics of a pre-training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Any = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            NormAct(4),
            Block(4),
            nn.ReLU(inplace=True),
            Last(),
            nn.Conv2d(4, 4, 2, stride=2),
            Frozen(4),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Token(4),
        )
        shake(found)
    found.features = 4
    return found


def shake(module):
    """Give norms other statistics than none."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


def batch(shape, n=3, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=rng), torch.arange(n)


def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y, reduction="sum")


def trained(model) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def one_by_one(model, x, y, dtype=torch.float64):
    """Gradients of each sample alone, shape (samples, parameters)."""
    model = copy.deepcopy(model).to(dtype)
    rows = []
    for i in range(len(x)):
        found = torch.autograd.grad(loss(model, x[i : i + 1].to(dtype), y[i : i + 1]), trained(model))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def by_opacus(model, x, y):
    wrapped: Any = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    loss(wrapped, x, y).backward()
    return torch.cat([p.grad_sample.flatten(1) for p in trained(wrapped)], 1)


def ghost_norms(model, x, y):
    wrapped = GradSampleModuleFastGradientClipping(copy.deepcopy(model), loss_reduction="sum")
    loss(wrapped, x, y).backward()
    return wrapped.get_norm_sample()


def worst(found, exact):
    """Largest error of a row over its norm."""
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max())


def check(found, shape):
    """All that a body must be, from one that is not yet."""
    torch.manual_seed(0)
    x, y = batch(shape)
    before = copy.deepcopy(found).eval()(x).detach()
    private = make_private(found)
    after = private.eval()(x).detach()
    assert float((after - before).norm() / before.norm()) < CLOSE
    model = Classifier(private, len(x)).train()
    check_private(private, x)
    exact = one_by_one(model, x, y)
    # deep networks add to it what one sample at a time is off by in single precision, on this processor
    close = CLOSE + 4 * worst(one_by_one(model, x, y, torch.float32), exact)
    assert worst(by_opacus(model, x, y), exact) < close
    norms = exact.norm(dim=1)
    assert float(((ghost_norms(model, x, y) - norms) / norms).abs().max()) < close
    # a step changes what trains, and nothing else
    state = copy.deepcopy(model.state_dict())
    loss(model, x, y).backward()
    torch.optim.SGD(trained(model), lr=0.1).step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    assert changed <= {k for k, p in model.named_parameters() if p.requires_grad}
    assert changed
    return model


def test_a_body_with_everything():
    model = check(toy(), (2, 6, 6))
    assert {"body.11.token", "body.6.scale.weight"} <= set(frozen(model))
    assert "body.1.0.scale.weight" not in frozen(model)


@pytest.mark.parametrize("make", [lambda: mlp((2, 8, 8), (8, 4)), lambda: convnet((2, 8, 8), (8, 8))])
def test_own_bodies(make):
    assert not frozen(check(make(), (2, 8, 8)))


def test_unconverted_norms_remember():
    norm: Any = nn.BatchNorm2d(2).train()
    before = norm.running_mean.clone()
    norm(batch((2, 4, 4))[0])
    assert not torch.equal(norm.running_mean, before)


def test_channels_last_is_a_trap():
    # the control: without the conversion, per-sample gradients are wrong and nothing is raised
    model = Classifier(convnet((4, 6, 6), (8,)), 3).train()
    x, y = batch((4, 6, 6))
    x = x.contiguous(memory_format=torch.channels_last)
    exact = one_by_one(model, x, y)
    assert worst(by_opacus(model, x, y), exact) > 0.1
    make_private(model.body)
    assert worst(by_opacus(model, x, y), exact) < CLOSE


def test_dropout_is_off():
    private = make_private(toy()).train()
    x, _ = batch((2, 6, 6))
    assert torch.equal(private(x), private(x))
    assert not torch.equal(toy().train()(x), toy().train()(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_norms_of_any_dimension(kind, affine):
    norm = kind(3, affine=affine).eval()
    shake(norm)
    extra = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(kind, 2)
    x, _ = batch((3, *[4] * extra))
    private = make_private(copy.deepcopy(norm))
    assert isinstance(private, FixedNorm)
    torch.testing.assert_close(private(x), norm(x))
    assert bool(trained(private)) == affine


def test_frozen_norms_stay_frozen():
    norm = nn.BatchNorm2d(2).requires_grad_(False)
    assert frozen(make_private(nn.Sequential(norm))) == ["0.scale.weight", "0.scale.bias"]


def test_an_empty_batch_has_no_gradients():
    model = Classifier(make_private(toy()), 3).train()
    x, y = batch((2, 6, 6))
    assert by_opacus(model, x[:0], y[:0]).shape[0] == 0


def test_a_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.features = nn.Linear(4, 4), 4

        def forward(self, x):
            return self.layer(self.layer(x.flatten(1)))

    model = Classifier(make_private(Twice()), 3).train()
    x, y = batch((1, 2, 2))
    assert worst(by_opacus(model, x, y), one_by_one(model, x, y)) < CLOSE
    with pytest.raises(NotImplementedError, match="tying"):
        ghost_norms(model, x, y)


def tied():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(2, track_running_stats=False), "BatchNorm2d at '0.1' without running statistics"),
        (nn.InstanceNorm2d(2, affine=True, track_running_stats=True), "InstanceNorm2d at '0.1' with track"),
        (nn.LSTM(2, 2), "LSTM at '0.1': use opacus.layers.DPLSTM"),
        (nn.MultiheadAttention(2, 1), "MultiheadAttention at '0.1': use opacus.layers.DPMultihead"),
        (
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
            "Conv2d at '0.1' with padding_mode='reflect'",
        ),
        (tied(), "'0.1.0.weight' and '0.1.1.weight' tied"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "ParametrizedLinear at '0.1' with a parametrization",
        ),
    ],
)
def test_what_cannot_be_private_is_refused(layer, message):
    with pytest.raises(NotPrivateError, match=message):
        make_private(nn.Sequential(nn.Sequential(nn.Identity(), layer)))


def test_a_pass_shows_what_mixes_and_what_remembers():
    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += x.sum().detach()
            return x

    x, _ = batch((2, 4, 4))
    with pytest.raises(NotPrivateError, match=r"one by one.*from Centre on"):
        check_private(Centre(), x)
    with pytest.raises(NotPrivateError, match=r"from Centre at '1.0' on"):
        check_private(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(Centre()), nn.ReLU()), x)
    count = Count().eval()
    with pytest.raises(NotPrivateError, match="buffer 'seen'"):
        check_private(count, x)
    assert count.seen == 0
    assert not count.training
    check_private(nn.GroupNorm(1, 2), x)


def test_a_pass_shows_layers_passed_over_and_features_of_another_number():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.features = nn.Linear(16, 3), 3

        def forward(self, x):
            return nn.functional.linear(x.flatten(1), self.layer.weight)

    x, _ = batch((1, 4, 4))
    made = Functional()
    with pytest.raises(NotPrivateError, match="never calls Linear at 'layer'"):
        check_private(made, x)
    made.requires_grad_(False)
    check_private(made, x)
    made.features = 4
    with pytest.raises(
        NotPrivateError,
        match=r"4 features per image, as its attribute 'features' says, got the shape \(\d+, 3\)",
    ):
        check_private(made, x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("mobilenetv3_small_100", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}),
        pytest.param("resnet50", {}, marks=pytest.mark.slow),
        pytest.param("wide_resnet50_2", {}, marks=pytest.mark.slow),
    ],
)
def test_timm(name, options: dict[str, Any]):
    pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    found = body(f"timm:{name}", (3, 32, 32), **options)
    shake(found)
    check(found, (3, 32, 32))


def test_transformers():
    pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    small: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    check(body("hf:vit", (3, 16, 16), patch_size=4, **small), (3, 16, 16))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7), (5, 6, 3, 4)])
def test_fixed_normalisation_is_one_map_in_all_modes(shape, affine):
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    norm = kinds[len(shape)](6, eps=1e-3, affine=affine).double()
    random = torch.Generator().manual_seed(0)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=random, dtype=torch.float64) + 0.1)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    expected = norm.eval()(x).detach()
    fixed = make_private(nn.Sequential(norm))
    for training in (True, False):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(fixed.train(training)(x).detach(), expected)
