"""Rules for per-sample gradients of convolutions, each sample against autograd, and the measured choice."""

import copy
import itertools
import math
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")
from torch import Tensor, nn  # noqa: E402

import empirical  # noqa: E402
from empirical._opacus import compute_conv_grad_sample  # noqa: E402
from empirical.networks.bodies import Body, Classifier  # noqa: E402
from empirical.networks.lite0 import Block  # noqa: E402
from empirical.train.gradients import convolutions, cost, trial  # noqa: E402
from empirical.train.gradients.engine import engine  # noqa: E402
from empirical.train.losses import CrossEntropy  # noqa: E402

LAYOUTS = (torch.contiguous_format, torch.channels_last)
# kernel, stride, padding, dilation
FORMS: list[tuple[Any, ...]] = [
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (5, 2, 0, 1),
    (5, 1, 4, 2),
    ((3, 5), (2, 1), (0, 2), (1, 2)),
    (3, 1, "same", 2),
    (3, 1, "valid", 1),
    (1, 1, 0, 1),
    (2, 3, 1, 1),
]


def inputs(
    layer: nn.Module, shape: tuple[int, ...], layout: Any = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the output."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    delta = torch.randn(layer(x).shape, generator=random, dtype=torch.float64)
    if x.ndim == 4:
        x, delta = x.contiguous(memory_format=layout), delta.contiguous(memory_format=layout)
    return x, delta


def check(layer: Any, x: Tensor, delta: Tensor) -> None:
    """Gradients and norms of each sample are those of autograd on that sample alone."""
    found = convolutions.grad_sample(layer, [x], delta)
    norms = convolutions.norms(layer, [x], delta)
    assert found.keys() == norms.keys() == {p for p in layer.parameters() if p.requires_grad}
    for p, sample in found.items():
        for i in range(len(x)):
            (own,) = torch.autograd.grad((layer(x[i : i + 1]) * delta[i : i + 1]).sum(), p)
            torch.testing.assert_close(sample[i], own, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(norms[p][i], own.norm(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_depthwise(form: tuple[Any, ...], multiple: int, layout: Any) -> None:
    kernel, stride, padding, dilation = form
    layer = nn.Conv2d(6, 6 * multiple, kernel, stride, padding, dilation, groups=6, dtype=torch.float64)
    check(layer, *inputs(layer, (4, 6, 9, 11), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("width", [5, 60])
def test_pointwise(width: int, stride: Any, layout: Any) -> None:
    # wide and narrow: norms by products of pixels, and by the gradients
    layer = nn.Conv2d(width, width + 1, 1, stride, dtype=torch.float64)
    check(layer, *inputs(layer, (3, width, 7, 6), layout))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 6, 3, 2, 1, groups=6),
        nn.Conv1d(6, 4, 1),
        nn.Conv3d(6, 12, 3, 2, 1, groups=6),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv2d(6, 4, 1, padding=1),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
    ],
    ids=str,
)
def test_other_convolutions(layer: Any) -> None:
    layer = layer.double()
    check(layer, *inputs(layer, (3, 6, *(7, 8, 9)[: layer.weight.ndim - 2])))


def test_frozen_parts_have_no_gradients() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4, dtype=torch.float64)
    layer.weight.requires_grad_(False)
    check(layer, *inputs(layer, (2, 4, 5, 5)))


def test_a_rule_without_padding_is_seen_to_be_wrong() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, dtype=torch.float64)
    x, delta = inputs(layer, (2, 4, 6, 6))
    other = nn.Conv2d(4, 4, 3, padding=1, groups=4, dtype=torch.float64)
    right = convolutions.grad_sample(layer, [x], delta)[layer.weight]
    x[:, :, 0] = 0
    assert not torch.allclose(convolutions.grad_sample(other, [x], delta)[other.weight], right)


def last_block(size: int = 3) -> tuple[Classifier, Tensor, Tensor]:
    """The last block of lite0 and its head, with inputs and labels."""
    body = Body(Block(192, 320, 6, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), features=320)
    model = Classifier(empirical.make_private(body), 10).train()
    model.body.features = 320  # type: ignore[assignment]
    return model, torch.randn(8, 192, size, size), torch.arange(8) % 10


@pytest.mark.parametrize("kind", ["ghost", "hooks"])
def test_engines_use_the_rules(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = last_block()
    model, x = model.double(), x.double()
    alone = copy.deepcopy(model)
    called = []
    plain = convolutions._correlated
    monkeypatch.setattr(convolutions, "_correlated", lambda *a: called.append(1) or plain(*a))
    gradients = engine(model, CrossEntropy(), kind, clip=True)
    found = gradients.norms(x, y)
    assert called
    assert found is not None
    for i in range(len(x)):
        loss = CrossEntropy().value(alone(x[i : i + 1]), y[i : i + 1]).sum()
        own = torch.autograd.grad(loss, list(alone.parameters()))
        norm = math.hypot(*(float(g.norm()) for g in own))
        assert float(found[i]) == pytest.approx(norm, rel=1e-9)


class Shifted(nn.Module):
    """A layer whose input does not depend on the image, and one whose input does."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.apart = nn.Conv2d(1, 6, 3), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh().mean((2, 3)) + self.apart(torch.ones_like(x[:, 0, 0, :4]))


def test_a_layer_apart_from_the_image_has_its_gradients_too() -> None:
    model = Classifier(Shifted(), 3).double()
    x, y = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.arange(5) % 3
    alone = copy.deepcopy(model)
    gradients = engine(model, CrossEntropy(), "hooks", clip=True)
    for _ in range(2):
        found = gradients.norms(x, y)
        sums = gradients.total(torch.ones(5, dtype=torch.float64))
        own = torch.autograd.grad(CrossEntropy().value(alone(x), y).sum(), list(alone.parameters()))
        assert found is not None
        for mine, right in zip(sums, own, strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires an NVIDIA GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("form", [*FORMS, (3, 1, 1, 1)])
def test_the_rule_of_a_gpu_is_that_of_a_processor(
    form: tuple[Any, ...], multiple: int, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, stride, padding, dilation = form
    layer = nn.Conv2d(6, 6 * multiple, kernel, stride, padding, dilation, groups=6, dtype=torch.float64)
    x, delta = inputs(layer, (5, 6, 19, 21), layout)
    right = convolutions.grad_sample(layer, [x], delta)[layer.weight]
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", None)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        layer = layer.to("cuda", dtype)
        found = convolutions.grad_sample(layer, [x.to("cuda", dtype)], delta.to("cuda", dtype))[layer.weight]
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().double(), right, rtol=error, atol=error * float(right.std()))


def test_a_layer_that_is_called_twice_has_the_sum_of_both_calls() -> None:
    class Twice(nn.Module):
        features = 6

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(6, 6, 3, padding=1, groups=6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh()).mean((2, 3))

    model = Classifier(Twice(), 3).double()
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64)
    choice = trial.choose(model, CrossEntropy(), "ghost", x)
    assert choice.kind == "ghost"


@pytest.mark.slow
def test_the_rule_costs_a_fraction() -> None:
    layer = nn.Conv2d(480, 480, 3, padding=1, groups=480)
    x = torch.randn(8, 480, 6, 6)

    def seconds(rule: Any) -> float:
        found = []
        for _ in range(4):
            begun = time.process_time()
            rule(layer, [x], x)
            found.append(time.process_time() - begun)
        return min(found[1:])

    assert 5 * seconds(convolutions.grad_sample) < seconds(compute_conv_grad_sample)


# ---- the choice by measured cost


class Timed:
    """An engine that takes a time of its own."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.params, self._clock, self._seconds = [], clock, seconds

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        self._clock[0] += self._seconds if math.isfinite(self._seconds) else 0.5
        return x.new_ones(len(x))

    def total(self, factors: Tensor | None) -> list[Tensor]:
        if math.isinf(self._seconds):
            raise RuntimeError("does not work")
        return []

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "order"),
    [
        (dict(ghost=1.0, hooks=1.0, functorch=1.0), ["ghost", "hooks", "functorch"]),
        # what is faster by little goes not before
        (dict(ghost=1.4, hooks=1.0, functorch=1.2), ["ghost", "hooks", "functorch"]),
        (dict(ghost=1.6, hooks=1.0, functorch=1.2), ["hooks", "ghost", "functorch"]),
        (dict(ghost=9.0, hooks=3.0, functorch=1.0), ["functorch", "hooks", "ghost"]),
        (dict(ghost=math.inf, hooks=3.0, functorch=1.0), ["functorch", "hooks", "ghost"]),
        (dict(hooks=3.0, functorch=1.0), ["functorch", "hooks"]),
    ],
)
def test_engines_are_ordered_by_what_they_take(
    seconds: dict[str, float], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost, "_now", lambda x: clock[0])
    kinds: Any = ["closed", *seconds, "loop"]
    found = cost.ordered(kinds, lambda kind: Timed(clock, seconds[kind]), torch.zeros(2, 1))
    assert found == ["closed", *order, "loop"]


def test_a_named_engine_is_not_measured() -> None:
    def never(kind: str) -> Any:
        raise AssertionError(kind)

    assert cost.ordered(["hooks"], never, torch.zeros(2, 1)) == ["hooks"]


def test_slow_networks_take_the_faster_engine_and_quick_ones_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = itertools.count()
    asked = []

    def fake(make: Any, kind: str, x: Tensor) -> float:
        asked.append((kind, next(times)))
        return {"ghost": 5.0, "hooks": 1.0, "functorch": 3.0}[kind]

    monkeypatch.setattr(cost, "_seconds", fake)
    model, x, _ = last_block(2)
    assert trial.choose(model, CrossEntropy(), "auto", x[:4]).kind == "ghost"
    assert not asked
    monkeypatch.setattr(cost, "SLOW", 10)
    choice = trial.choose(model, CrossEntropy(), "auto", x[:4])
    assert (choice.kind, choice.passed_over) == ("hooks", {})
    assert [kind for kind, _ in asked] == ["ghost", "hooks", "functorch"]
    asked.clear()
    assert trial.choose(model, CrossEntropy(), "ghost", x[:4]).kind == "ghost"
    assert len(asked) <= 1
