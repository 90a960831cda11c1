"""The verdict on each hostile body, and on harmless ones like it; accepted ones are clipped rightly."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.data.images import Images, Part
from empirical.data.scikit import digits
from empirical.networks.bodies import Body, Classifier, mlp
from empirical.networks.check import NotPrivateError, check_private
from empirical.networks.private import make_private
from empirical.recipe import Recipe
from empirical.train.fine_tuning import FineTuning
from empirical.train.gradients.closed_form import ClosedForm, chain
from empirical.train.gradients.engine import Ghost, PerSample, engine
from empirical.train.gradients.plain import Gradients, Loop, factors, row_norms
from empirical.train.losses import CrossEntropy
from tests.empirical.train import awkward, hostile
from tests.empirical.train.hostile import SHAPE, Case

CASES = [*hostile.meeting(), *hostile.kept(), *awkward.by_engine(), *awkward.harmless()]
# the first half of the digits, as rounding takes the rest
CLOSE = torch.finfo(torch.float32).eps ** 0.5
pytestmark = pytest.mark.filterwarnings(
    "ignore:engine .* does not fit:UserWarning", "ignore:Full backward hook is firing:UserWarning"
)


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def made(case: Case) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.make()


def task() -> Images:
    random = np.random.default_rng(0)
    part = Part(random.random((12, *SHAPE)), np.arange(12) % 3, ["a", "b", "c"])
    return Images(part, part, None)


def tuning(body: nn.Module, method: Any = "fft", **options: Any) -> FineTuning:
    return FineTuning(task(), body, Recipe(method, steps=4, batch=4, epsilon=8.0, **options))


def batch(samples: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(samples, *SHAPE, generator=random) - 1, torch.arange(samples) % 3


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient of each sample alone, flat, in double precision."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(loss, params, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
        rows.append(torch.cat([g.flatten() for g in parts]).double())
    return rows


def clipped(gradients: Gradients, x: Tensor, y: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Norms, and the clipped sum."""
    norms = gradients.norms(x, y)
    assert norms is not None
    return norms, torch.cat([g.flatten() for g in gradients.total(factors(norms, clip, "flat", 0.01))])


@by_name(CASES)
def test_verdicts(case: Case) -> None:
    body = made(case)
    if case.refused:
        with pytest.raises(NotPrivateError, match=case.refused):
            tuning(body)
        return
    found = tuning(body)
    assert found._engines["fft"] == case.kind
    # and what it gives is right, on other images
    x, y = batch(9)
    right = one_by_one(found.model.train(), x, y)
    active = found._stages.enter(0)
    clip = float(torch.stack(right).norm(dim=1).median())
    norms, total = clipped(active.gradients, x, y, clip)
    torch.testing.assert_close(norms.double(), torch.stack(right).norm(dim=1), rtol=CLOSE, atol=0)
    expected = torch.stack([g * min(1.0, clip / float(g.norm())) for g in right]).sum(0)
    assert float((total - expected).norm()) < CLOSE * 9 * clip


@by_name([case for case in CASES if case.leaks])
def test_by_types_alone_one_image_moves_the_sum_by_more_than_the_clip(case: Case) -> None:
    """The control of the verdicts: what they refuse, or give to a slower engine, leaks."""
    model = Classifier(made(case), 3).train()
    gradients = engine(model, CrossEntropy(), "ghost", clip=True)
    assert isinstance(gradients, Ghost)
    x, y = batch(24)
    # with bright ones, as a network's inputs may be anything
    x = torch.cat([x, 30 * x[-4:], torch.linspace(-1, 1, x[0].numel()).view(1, *SHAPE)])
    y = torch.arange(len(x)) % 3
    clip = float(clipped(gradients, x[:12], y[:12], 1.0)[0].median())
    beside = list(range(12))
    _, without = clipped(gradients, x[beside], y[beside], clip)
    moved = []
    for extreme in range(12, len(x)):
        places = [extreme, *beside]
        moved.append(float((clipped(gradients, x[places], y[places], clip)[1] - without).norm()) / clip)
    # far above what rounding does
    assert max(moved) > 1.01


def test_a_harmless_body_moves_by_the_clip_at_most() -> None:
    model = Classifier(awkward.Reused(), 3)
    gradients = engine(model, CrossEntropy(), "ghost", clip=True)
    x, y = batch(24)
    _, without = clipped(gradients, x[:12], y[:12], 0.1)
    for extreme in range(12, 24):
        places = [extreme, *range(12)]
        moved = clipped(gradients, x[places], y[places], 0.1)[1] - without
        assert float(moved.norm()) < 0.1 * (1 + CLOSE)


def test_ranks_get_norms_wrong() -> None:
    (case,) = (case for case in CASES if case.name == "ranks")
    model = Classifier(made(case), 3)
    x, y = batch(9)
    alone = torch.stack(one_by_one(model, x, y)).norm(dim=1)
    norms, _ = clipped(engine(model, CrossEntropy(), "ghost", clip=True), x, y, 1.0)
    assert float((norms / alone).max()) > 3


def test_counts_of_tokens_mix_samples() -> None:
    """Gradients are divided by how often a token is in the batch, so that one image changes all."""
    tokens, clip = 64, 1.0
    embed = nn.Embedding(tokens, 4, scale_grad_by_freq=True)
    weights = torch.tensor([1.0] + [0.001] * (tokens - 1))

    class Pooled(nn.Module):
        features = 4

        def __init__(self) -> None:
            super().__init__()
            self.embed = embed

        def forward(self, x: Tensor) -> Tensor:
            return (self.embed(x.flatten(1).long()) * weights[:, None]).sum(1)

    torch.manual_seed(0)
    model = Classifier(Pooled(), 3)
    # the token that a sample is made of is in it once, and then the same everywhere
    x = torch.stack(
        [torch.cat([torch.tensor([i]), torch.full((tokens - 1,), tokens - 1)]) for i in range(60)]
    )
    x = torch.cat([x, torch.arange(tokens)[None]]).view(61, 1, 8, 8)
    y = torch.arange(61) % 3
    model.head.requires_grad_(False)
    gradients = engine(model, CrossEntropy(), "auto", clip=True)
    with torch.no_grad():
        model.head.weight.mul_(30)
    without = clipped(gradients, x[:60], y[:60], clip)[1]
    moved = clipped(gradients, x, y, clip)[1] - without
    assert float(moved.norm()) > 2 * clip
    with pytest.raises(NotPrivateError, match="counts over the batch, got Embedding at 'embed'"):
        make_private(Pooled())


def test_padding_is_not_trained() -> None:
    """Most pixels are black here, which is the token of padding."""
    x, y = batch(7)
    x = torch.where(x < 0.8, -1.0, x)
    found = tuning(hostile.Tokens(padding_idx=0))
    with torch.no_grad():
        # so that the embedding counts
        found.model.head.weight.mul_(10)
    alone = torch.stack(one_by_one(found.model, x, y)).norm(dim=1)
    ghost = engine(found.model, CrossEntropy(), "ghost", clip=True)
    assert float((clipped(ghost, x, y, 1.0)[0] / alone).max()) > 1.5
    ghost.close()
    norms, total = clipped(found._stages.enter(0).gradients, x, y, 1.0)
    torch.testing.assert_close(norms.double(), alone, rtol=CLOSE, atol=0)
    padding, others = total[: hostile.TOKENS * hostile.WIDTH].view(hostile.TOKENS, -1).tensor_split([1])
    assert not padding.any()
    assert others.any()


def test_as_many_images_as_tokens() -> None:
    """Where axes are of one length nothing is raised, and norms are wrong; the trial is of other lengths."""
    found = tuning(awkward.Across())
    found.model.train()
    x, y = batch(4)
    alone = torch.stack(one_by_one(found.model, x, y)).norm(dim=1)
    torch.testing.assert_close(
        clipped(found._stages.enter(0).gradients, x, y, 1.0)[0].double(), alone, rtol=CLOSE, atol=0
    )
    found._stages.leave()
    ghost = engine(found.model, CrossEntropy(), "ghost", clip=True)
    assert float((clipped(ghost, x, y, 1.0)[0] / alone - 1).abs().max()) > 0.05
    ghost.close()
    with pytest.raises(RuntimeError):
        engine(found.model, CrossEntropy(), "ghost", clip=True).norms(x[:3], y[:3])


def test_closed_form_is_for_plain_chains() -> None:
    """Residual blocks on digits: the closed form of their layers in a row has other norms."""

    def residual() -> nn.Module:
        return awkward.Residual(nn.Linear(32, 32), nn.ReLU())

    torch.manual_seed(0)
    body = Body(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), residual(), residual(), features=32)
    model = Classifier(body, 10)
    assert chain(model) is None
    assert chain(Classifier(mlp((1, 8, 8), (32, 32)), 10)) is not None
    train = digits().train
    x, y = torch.tensor(train.images[:40]), torch.tensor(train.labels[:40])
    alone = torch.stack(one_by_one(model, x, y)).norm(dim=1)
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Flatten | nn.Linear | nn.ReLU)]
    wrong = ClosedForm(layers, CrossEntropy(), {}).norms(x, y)
    assert float((wrong / alone - 1).abs().mean()) > 0.3
    auto = engine(model, CrossEntropy(), "auto", clip=True)
    torch.testing.assert_close(clipped(auto, x, y, 1.0)[0].double(), alone, rtol=CLOSE, atol=0)


@pytest.mark.parametrize("change", ["hook", "pre-hook", "forward", "twice", "subclass"])
def test_what_is_no_plain_chain(change: str) -> None:
    body = mlp(SHAPE, (8, 8))
    assert chain(body) is not None
    if change == "hook":
        list(body)[1].register_forward_hook(lambda *_: None)
    elif change == "pre-hook":
        list(body)[1].register_forward_pre_hook(lambda *_: None)
    elif change == "forward":
        list(body)[2].forward = torch.tanh
    elif change == "twice":
        body.append(list(body)[3])
    else:
        body[2] = type("Other", (nn.ReLU,), {})()
    assert chain(body) is None


# ---- engines by name, fallbacks, stages


def test_an_engine_asked_for_by_name_is_refused_where_it_is_wrong() -> None:
    body = awkward.hooked()
    for kind in ("ghost", "hooks"):
        with pytest.raises(NotPrivateError, match=rf"engine must not be '{kind}' .*of Linear at 'body.1'"):
            tuning(body, engine=kind)
    assert tuning(body, engine="loop")._engines["fft"] == "loop"
    with pytest.raises(NotPrivateError, match=r"'ghost' .*called twice.* use 'hooks'"):
        tuning(awkward.repeated(), engine="ghost")


def test_a_fallback_is_said_and_recorded() -> None:
    with pytest.warns(UserWarning, match=r"'ghost' does not fit .*'fft'.* of Linear at 'body.enc'.*'loop'"):
        run = tuning(awkward.Transposed()).run()
    assert run.attrs["engines"] == '{"fft": "loop"}'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuning(awkward.Reused())


@pytest.mark.parametrize("method", ["lp-fft", "lora", "bitfit", "sparse"])
def test_each_stage_is_tried_with_what_it_trains(method: Any) -> None:
    found = tuning(awkward.hooked(), method, lp_share=0.25)
    assert (
        found._engines
        == {
            "lp-fft": {"lp": "closed", "lp-fft": "functorch"},
            # the hook is of the layer that the adapter holds
            "lora": {"lp": "closed", "lora": "ghost"},
            "bitfit": {"lp": "closed", "bitfit": "functorch"},
            "sparse": {"lp": "closed", "selection": "functorch", "sparse": "functorch"},
        }[method]
    )
    assert np.isfinite(found.run().test_loss).all()


def test_nothing_is_written_before_the_trial(tmp_path: Any) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(NotPrivateError):
        FineTuning(
            task(),
            awkward.repeated(),
            Recipe("lp-fft", steps=4, batch=4, epsilon=8.0, engine="ghost"),
            checkpoint=path,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(16, 6),
        nn.utils.parametrizations.weight_norm(nn.Linear(16, 6)),
        nn.MultiheadAttention(16, 1),
    ],
    ids=["recurrent", "parametrized", "attention"],
)
def test_frozen_bodies_need_not_be_fit_for_training(layer: nn.Module) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.token = layer, nn.Parameter(torch.ones(16))
            self.features = 16 if isinstance(layer, nn.MultiheadAttention) else 6

        def forward(self, x: Tensor) -> Tensor:
            h = x.flatten(1) + self.token
            if isinstance(self.layer, nn.MultiheadAttention):
                # of one token, with the images in the middle
                return self.layer(h[None], h[None], h[None], need_weights=False)[0][0]
            return self.layer(h[:, None])[0][:, 0] if isinstance(self.layer, nn.LSTM) else self.layer(h)

    if isinstance(layer, nn.LSTM):
        layer.batch_first = True
    assert tuning(Wrapped(), "lp")._engines["lp"] == "closed"
    with pytest.raises(NotPrivateError, match="at 'layer'"):
        tuning(Wrapped(), "fft")


def test_a_trial_leaves_no_trace() -> None:
    import random

    body = hostile.around(nn.ReLU())
    before = {name: value.clone() for name, value in body.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    check_private(body, batch(4)[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    tuning(body, "sparse")
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(), states[2])  # noqa: NPY002
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert not any(layer._forward_hooks for layer in body.modules())


# ---- norms of many entries


def test_norms_of_many_entries_bound() -> None:
    """Squares added up one after the other in single precision are lost once the sum is large."""
    g = torch.rand(2, 4 * 10**6, generator=torch.Generator().manual_seed(0))
    right = torch.stack([row.double().square().sum().sqrt() for row in g])
    assert float((row_norms(g) / right - 1).abs().max()) < 1e-7
    assert float((g.norm(dim=1).double() / right - 1).abs().max()) > 1e-7


@pytest.mark.parametrize("kind", ["ghost", "hooks", "loop"])
def test_engines_add_norms_up_in_blocks(kind: Any) -> None:
    """A convolution with two million weights, all of whose gradients are alike."""
    conv = nn.Conv2d(1024, 2048, 1)
    body = Body(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), features=2048)
    model = Classifier(body, 2)
    x, y = 1 + torch.rand(2, 1024, 1, 1, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    gradients = engine(model, CrossEntropy(), kind, clip=True)
    found = gradients.norms(x, y)
    assert isinstance(gradients, Ghost | PerSample | Loop)
    assert found is not None
    alone = torch.stack([row.norm() for row in one_by_one(model, x, y)])
    # the roundings of the gradients themselves, and of the last
    torch.testing.assert_close(found.double(), alone, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
