"""Clipped sums of every engine and subset against a loop over single samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from empirical.networks import subsets
from empirical.networks.bodies import ACTIVATIONS, Classifier, convnet, mlp
from empirical.train.gradients.closed_form import ClosedForm, chain
from empirical.train.gradients.engine import Ghost, engine
from empirical.train.gradients.plain import Plain, factors
from empirical.train.losses import CrossEntropy, Loss

CLASSES = 3
SHAPE = (1, 8, 8)


def classifier(kind: str) -> Classifier:
    body = mlp(SHAPE, (12, 7), rng=0) if kind == "mlp" else convnet(SHAPE, widths=(8, 16), groups=4, rng=0)
    torch.manual_seed(1)
    return Classifier(body, CLASSES).double()


def batch(samples: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(samples, *SHAPE, generator=random, dtype=torch.float64)
    # so that some gradients are above the threshold and some below
    x *= torch.logspace(-3, 1, samples, dtype=torch.float64)[:, None, None, None]
    return x, torch.arange(samples) % CLASSES


def choose(model: Classifier, subset: str) -> dict[nn.Parameter, Tensor]:
    may = list(model.parameters())
    if subset == "lora":
        model.body = subsets.adapt(model.body, rank=2, seed=3)
        model.double()
        # away from zero, where half of the gradients vanish
        random = torch.Generator().manual_seed(4)
        for adapter in (m for m in model.modules() if isinstance(m, subsets.Adapter)):
            weight = adapter.up.weight
            assert isinstance(weight, nn.Parameter)
            with torch.no_grad():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    subsets.train_only(model, model.head, subset, may)  # type: ignore[arg-type]
    if subset != "sparse":
        return {}
    body = [p for p in model.body.parameters() if p.requires_grad]
    return dict(zip(body, subsets.largest([p.abs() for p in body], 0.3), strict=True))


def by_loop(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, masks: dict[nn.Parameter, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Norms, and the sum of gradients clipped at their median, one sample at a time."""
    trained = [p for p in model.parameters() if p.requires_grad]
    norms, gradients, sums = [], [], [torch.zeros_like(p) for p in trained]
    for i in range(len(x)):
        own = torch.autograd.grad(loss.value(model(x[i : i + 1]), y[i : i + 1]).sum(), trained)
        own = [g * masks.get(p, torch.ones_like(p)) for p, g in zip(trained, own, strict=True)]
        norm = torch.cat([g.flatten() for g in own]).norm()
        norms.append(norm)
        gradients.append(own)
    clip = torch.stack(norms).median().item()
    for norm, own in zip(norms, gradients, strict=True):
        for total, g in zip(sums, own, strict=True):
            total += g * min(1.0, clip / norm.item())
    return torch.stack(norms), sums


CASES = [
    ("mlp", kind, subset)
    for kind in ("closed", "ghost", "hooks", "functorch")
    for subset in ("head", "all", "lora", "bias", "sparse")
    if (kind, subset) != ("ghost", "sparse")
] + [
    ("conv", kind, subset)
    for kind in ("ghost", "hooks", "functorch")
    for subset in ("head", "all", "lora", "bias", "sparse")
    if (kind, subset) != ("ghost", "sparse")
]


@pytest.mark.parametrize(("net", "kind", "subset"), CASES)
def test_clipped_sum_is_that_of_a_loop_over_samples(net: str, kind: str, subset: str) -> None:
    model = classifier(net)
    masks = choose(model, subset)
    x, y = batch()
    norms, sums = by_loop(copy.deepcopy(model) if not masks else model, CrossEntropy(), x, y, masks)
    clip = norms.median().item()
    assert (norms < clip).any()
    assert (norms > clip).any()
    gradients = engine(model, CrossEntropy(), kind, masks=masks, clip=True)  # type: ignore[arg-type]
    for _ in range(2):  # nothing of a batch is left for the next
        found = gradients.norms(x, y)
        assert found is not None
        total = gradients.total(factors(found, clip, "flat", 0.01))
        # double precision: thousands of roundings
        torch.testing.assert_close(found, norms, rtol=1e-9, atol=1e-12)
        for own, expected in zip(total, sums, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
    gradients.close()
    # a wrong threshold is seen
    found = engine(model, CrossEntropy(), "auto", masks=masks, clip=True)
    norms_again = found.norms(x, y)
    assert norms_again is not None
    wrong = found.total(factors(norms_again, 1.1 * clip, "flat", 0.01))
    assert max((a - b).abs().max() for a, b in zip(wrong, sums, strict=True)) > 1e-4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_closed_form_of_each_activation(activation: str) -> None:
    body = mlp((5,), (4,), activation=activation, bias=False, rng=0)
    model = Classifier(body, CLASSES).double()
    random = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(7, 5, generator=random, dtype=torch.float64)
    y = torch.arange(7) % CLASSES
    norms, sums = by_loop(model, CrossEntropy(), x, y, {})
    gradients = engine(model, CrossEntropy(), "closed", clip=True)
    found = gradients.norms(x, y)
    assert found is not None
    clip = norms.median().item()
    torch.testing.assert_close(found, norms, rtol=1e-12, atol=1e-14)
    for own, expected in zip(gradients.total(factors(found, clip, "flat", 0.01)), sums, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)


def test_plain_gradient_is_the_sum() -> None:
    model = classifier("conv")
    x, y = batch()
    gradients = engine(model, CrossEntropy(), "auto", clip=False)
    assert isinstance(gradients, Plain)
    assert gradients.norms(x, y) is None
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(model(x), y, reduction="sum"), list(model.parameters())
    )
    for own, other in zip(gradients.total(None), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("clipping", ["flat", "normalised"])
def test_clipped_norms_never_exceed_the_threshold(clipping: str) -> None:
    norms = torch.logspace(-30, 30, 200)
    clip = 0.7
    clipped = norms * factors(norms, clip, clipping, 0.01)  # type: ignore[arg-type]
    # one rounding in each of quotient and product, of single precision
    assert (clipped <= clip * (1 + 2 * torch.finfo(torch.float32).eps)).all()
    assert (norms * factors(norms, 1.01 * clip, clipping, 0.01)).max() > clip  # type: ignore[arg-type]
    assert factors(torch.zeros(1), clip, clipping, 0.01).isfinite().all()  # type: ignore[arg-type]


def test_engines_are_chosen_by_the_network() -> None:
    assert isinstance(engine(classifier("mlp"), CrossEntropy(), "auto", clip=True), ClosedForm)
    assert isinstance(engine(classifier("conv"), CrossEntropy(), "auto", clip=True), Ghost)
    assert chain(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.SiLU())) is None
    assert chain(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.GELU("tanh"))) is None
    assert chain(nn.Sequential(nn.Flatten(2), nn.Linear(2, 2))) is None


def test_engines_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"engine must not be 'closed' for Classifier.*use 'ghost'"):
        engine(classifier("conv"), CrossEntropy(), "closed", clip=True)
    model = classifier("conv")
    with pytest.raises(ValueError, match="engine must not be 'ghost' for a sparse subset"):
        engine(model, CrossEntropy(), "ghost", masks=choose(model, "sparse"), clip=True)
    with pytest.raises(ValueError, match="requires gradients, got none"):
        engine(classifier("mlp").requires_grad_(False), CrossEntropy(), "auto", clip=True)


def test_a_layer_in_two_places_is_one() -> None:
    tied = classifier("conv")
    inner = nn.Linear(16, 16).double()
    tied.body = nn.Sequential(tied.body, inner, nn.Tanh(), inner)
    x, y = batch()
    norms, _ = by_loop(tied, CrossEntropy(), x, y, {})
    hooks = engine(tied, CrossEntropy(), "hooks", clip=True)
    found = hooks.norms(x, y)
    assert found is not None
    torch.testing.assert_close(found, norms, rtol=1e-9, atol=1e-12)
    hooks.close()
    with pytest.raises(ValueError, match=r"engine must not be 'ghost' .*called twice.* use 'hooks'"):
        engine(tied, CrossEntropy(), "ghost", clip=True).norms(x, y)


def test_adapters_start_where_the_network_was() -> None:
    model = classifier("conv")
    x, _ = batch()
    before = model(x)
    model.body = subsets.adapt(model.body, rank=2, seed=0)
    assert torch.equal(model.double()(x), before)
    with pytest.raises(ValueError, match="no linear layer or plain convolution"):
        subsets.adapt(nn.Sequential(nn.Flatten()), 2, 0)


def test_subsets_without_anything_to_train_are_refused() -> None:
    bare = Classifier(mlp(SHAPE, (4,), bias=False, rng=0), CLASSES)
    with pytest.raises(ValueError, match="subset 'bias' could train: give the body biases"):
        subsets.train_only(bare, bare.head, "bias", list(bare.parameters()))
    frozen = Classifier(mlp(SHAPE, (4,), rng=0), CLASSES)
    with pytest.raises(ValueError, match="subset 'all' could train: use 'lp'"):
        subsets.train_only(frozen, frozen.head, "all", list(frozen.head.parameters()))


def test_largest_keeps_the_share_asked_for() -> None:
    scored = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[5.0, 4.0]])]
    for density, kept in ((0.2, 1), (0.4, 2), (0.41, 3), (1.0, 5)):
        masks = subsets.largest(scored, density)
        assert sum(int(m.sum()) for m in masks) == kept
        chosen = torch.cat([s[m.bool()] for s, m in zip(scored, masks, strict=True)])
        assert sorted(chosen.tolist()) == sorted([5.0, 4, 3, 2, 1][:kept])
