"""Fine-tuning: a step by hand, stages, resumption, the privacy record, leaks, processes."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from empirical.data.images import Images, Part
from empirical.networks.bodies import convnet, mlp
from empirical.networks.private import NotPrivateError
from empirical.privacy.history import History
from empirical.privacy.ledger import LedgerError, read
from empirical.privacy.report import account
from empirical.recipe import Recipe
from empirical.train import fine_tuning, network, step
from empirical.train.checkpoint import Checkpoint
from empirical.train.fine_tuning import FineTuning, RunOptions, finetune
from empirical.train.gradients import trial
from empirical.train.gradients.opacus import PerSample
from empirical.train.gradients.plain import factors
from empirical.train.streams import Streams
from langevin.solvers.errors import Diverged
from langevin.store.errors import StoreError
from tests.helpers import execute

SHAPE = (1, 6, 6)
SAMPLES = 60


def make_task(samples: int = SAMPLES) -> Images:
    random = np.random.default_rng(0)

    def part(count: int) -> Part:
        labels = np.arange(count) % 3
        images = 0.3 * random.random((count, *SHAPE))
        images[np.arange(count), 0, labels, labels] += 0.6
        return Part(images, labels, ["a", "b", "c"])

    return Images(part(samples), part(30), part(30))


TASK = make_task()
BODY = mlp(SHAPE, (8, 6), rng=0)
CONV = convnet(SHAPE, widths=(8, 16), groups=4, rng=0)


def quick(method: Any = "lp-fft", **options: Any) -> Recipe:
    return Recipe(method, **({"steps": 12, "batch": 15, "lr": 0.5, "density": 0.3} | options))


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    return a.equals(b)


# ---- one step, and the law of its noise


def test_a_step_is_clipping_noise_and_descent() -> None:
    recipe = quick("fft", steps=1, batch=SAMPLES, clip=0.5)
    tuning = FineTuning(TASK, BODY, recipe, rng=1, evaluations=1)
    tuning._initial_head()
    model = copy.deepcopy(tuning.model)
    tuning.run()
    x = torch.from_numpy(TASK.normalised(TASK.train))
    y = torch.tensor(TASK.train.labels)
    params = list(model.parameters())
    sums = [torch.zeros_like(p) for p in params]
    for i in range(len(y)):
        own = torch.autograd.grad(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), params)
        norm = torch.cat([g.flatten() for g in own]).norm().item()
        for total, g in zip(sums, own, strict=True):
            total += g * min(1.0, 0.5 / norm)
    (mechanism,) = recipe.history(SAMPLES).mechanisms
    assert mechanism.noise_multiplier is not None
    draws = tuning._streams.noise(0, 0, sum(p.numel() for p in params), torch.float32)
    for p, total, noise, trained in zip(
        params, sums, draws.split([p.numel() for p in params]), tuning.model.parameters(), strict=True
    ):
        noisy = total + 0.5 * mechanism.noise_multiplier * noise.view_as(p)
        # sixty terms in single precision
        torch.testing.assert_close(trained, p - 0.5 * noisy / SAMPLES, rtol=1e-5, atol=1e-6)
        assert (trained - (p - 0.5 * total / SAMPLES)).abs().max() > 1e-3


def test_noise_has_the_multiplier_of_the_history() -> None:
    # one class, so that gradients vanish and noise alone moves the weights
    part = Part(TASK.train.images, np.zeros(SAMPLES, int), ["a"])
    task = Images(part, part, part)
    recipe = quick("fft", steps=400, batch=SAMPLES, clip=2.0, lr=1.0)
    tuning = FineTuning(task, BODY, recipe, evaluations=1)
    before = torch.cat([p.detach().flatten().clone() for p in tuning.model.body.parameters()])
    tuning.run()
    moved = torch.cat([p.detach().flatten() for p in tuning.model.body.parameters()]) - before
    nu = recipe.history(SAMPLES)["fft"].noise_multiplier
    assert nu is not None
    spread = 2.0 * nu / SAMPLES * math.sqrt(400)
    ratio = (moved / spread).square().mean().item()
    error = math.sqrt(2 / len(moved))
    assert abs(ratio - 1) < 4 * error
    assert abs(ratio - (4 / 3) ** 2) > 4 * error


def test_steps_divide_by_the_expected_batch_and_momentum_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dividing by what was drawn would let one sample change the noise."""
    tuning = FineTuning(TASK, BODY, quick("lp-fft", momentum=0.9, lr=0.5), rng=3)
    release, released = tuning._stepper.release, []
    monkeypatch.setattr(tuning._stepper, "release", lambda *a: released.append(release(*a)) or released[-1])
    tuning._initial_head()
    for number in range(6):
        tuning._step(number)

    def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        before = [p.detach().clone() for p in tuning.model.parameters()]
        tuning._step(number)
        moved = torch.cat([(b - p).flatten() for b, p in zip(before, tuning.model.parameters(), strict=True)])
        return moved, 0.5 / 15 * torch.cat([r.flatten() for r in released[-1].sums])

    moved, plain = step(6)
    assert tuning._record._updates[6, 0] not in (0, 15)
    # differences of weights in single precision
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-6)
    then, rest = step(7)
    torch.testing.assert_close(then, rest + 0.9 * plain, rtol=1e-5, atol=1e-6)
    assert (then - rest).abs().max() > 1e-2


def test_what_is_logged_of_a_step() -> None:
    recipe = quick("fft", steps=1, batch=SAMPLES, clip=1.0)
    tuning = FineTuning(TASK, BODY, recipe, evaluations=1)
    tuning._initial_head()
    model = copy.deepcopy(tuning.model)
    run = tuning.run()
    # images are normalised by the public part alone
    public, fine_tuning = TASK.public.images, TASK.train.images  # type: ignore[union-attr]
    x = torch.from_numpy((fine_tuning - public.mean()) / public.std())
    y = torch.tensor(TASK.train.labels)
    params = list(model.parameters())
    norms, total = [], torch.zeros(sum(p.numel() for p in params))
    for i in range(SAMPLES):
        own = torch.autograd.grad(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), params)
        flat = torch.cat([g.flatten() for g in own])
        norms.append(float(flat.norm()))
        total += flat * min(1.0, 1.0 / norms[-1])
    nu = recipe.history(SAMPLES)["fft"].noise_multiplier
    assert nu is not None
    assert 0 < np.mean(np.array(norms) > 1) < 1
    assert run.clip_rate.item() == pytest.approx(np.mean(np.array(norms) > 1), abs=1e-6)
    assert run.gradient_norm.item() == pytest.approx(np.mean(norms), rel=1e-5)
    assert run.signal_to_noise.item() == pytest.approx(
        float(total.norm()) / (nu * len(total) ** 0.5), rel=1e-5
    )
    assert run.batch.item() == SAMPLES


# ---- stages


@pytest.mark.parametrize("body", [BODY, CONV], ids=["mlp", "conv"])
def test_probing_leaves_the_body_as_it_was(body: nn.Module) -> None:
    tuning = FineTuning(TASK, body, quick("lp"))
    tuning.run()
    for name, value in tuning.model.body.state_dict().items():
        assert torch.equal(value, body.state_dict()[name])
    switched = FineTuning(TASK, body, quick("lp-fft"))
    switched.run()
    moved = [
        not torch.equal(v, body.state_dict()[name]) for name, v in switched.model.body.state_dict().items()
    ]
    assert all(moved)


@pytest.mark.parametrize("body", [BODY, CONV], ids=["mlp", "conv"])
def test_subsets_move_alone(body: nn.Module) -> None:
    biased = FineTuning(TASK, body, quick("bitfit"))
    biased.run()
    for name, value in biased.model.body.state_dict().items():
        assert torch.equal(value, body.state_dict()[name]) == (not name.endswith("bias"))
    sparse = FineTuning(TASK, body, quick("sparse"))
    sparse.run()
    moved = sum(
        int((value != body.state_dict()[name]).sum())
        for name, value in sparse.model.body.state_dict().items()
    )
    total = sum(p.numel() for p in body.parameters())
    assert moved == math.ceil(0.3 * total)
    adapted = FineTuning(TASK, body, quick("lora"))
    adapted.run()
    base = {k.replace(".base", ""): v for k, v in adapted.model.body.state_dict().items()}
    for name, value in body.state_dict().items():
        assert torch.equal(base[name], value)
    assert any(bool(v.abs().max() > 0) for k, v in base.items() if ".up." in k)


def test_the_caller_keeps_its_body() -> None:
    before = copy.deepcopy(BODY.state_dict())
    finetune(TASK, BODY, quick("fft"))
    assert all(torch.equal(v, before[k]) for k, v in BODY.state_dict().items())
    assert all(p.requires_grad for p in BODY.parameters())


def test_engines_agree() -> None:
    runs = [finetune(TASK, BODY, quick("fft", engine=kind)) for kind in ("closed", "ghost", "hooks")]
    for other in runs[1:]:
        # twelve steps in single precision
        np.testing.assert_allclose(other.test_loss, runs[0].test_loss, rtol=1e-4)
    assert abs(finetune(TASK, BODY, quick("fft"), rng=1).test_loss - runs[0].test_loss).max() > 1e-2


def test_chunks_do_not_matter() -> None:
    whole, cut = (finetune(TASK, CONV, quick("fft"), chunk=chunk) for chunk in (None, 4))
    np.testing.assert_allclose(cut.test_loss, whole.test_loss, rtol=1e-4)


def fivefold(part: torch.Tensor) -> torch.Tensor:
    """A part, of which the last sample is repeated."""
    return torch.cat([part, part[-1:].expand(4)])


def drawn_fivefold(*at: Any, draw: Any = Streams.batch) -> np.ndarray:
    return fivefold(torch.from_numpy(draw(*at))).numpy()


@pytest.mark.parametrize("engine", ["hooks", "ghost"])
def test_what_fills_a_batch_up_does_not_count(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick("fft", engine=engine)
    names = ["test_loss", "batch", "clip_rate", "gradient_norm"]
    plain = finetune(TASK, CONV, recipe)
    monkeypatch.setattr(step, "_filled", fivefold)
    full = finetune(TASK, CONV, recipe)
    for name in names:
        np.testing.assert_allclose(full[name], plain[name], rtol=1e-4)
    # samples that are drawn again do
    monkeypatch.setattr(Streams, "batch", drawn_fivefold)
    other = finetune(TASK, CONV, recipe)
    assert all(abs(other[name] / plain[name] - 1).max() > 1e-2 for name in names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires an NVIDIA GPU")
def test_batches_on_a_gpu_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, task = [], make_task(600)
    of = PerSample.norms

    def norms(self: PerSample, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return of(self, x, y)

    monkeypatch.setattr(PerSample, "norms", norms)
    recipe = quick("fft", engine="hooks", batch=100)
    full = finetune(task, CONV, recipe, device="cuda", evaluations=1)
    filled, drawn = seen[-12:], full.batch.values.astype(int).tolist()
    assert filled == [step._round_size(size) for size in drawn]
    monkeypatch.setattr(step, "_filled", lambda part: part)
    plain = finetune(task, CONV, recipe, device="cuda", evaluations=1)
    assert seen[-12:] == drawn != filled
    np.testing.assert_allclose(full.test_loss, plain.test_loss, rtol=1e-3)


def test_batches_on_a_gpu_have_few_sizes() -> None:
    sizes = np.random.default_rng(0).binomial(6000, 300 / 6000, 1000)
    full = [step._round_size(int(size)) for size in sizes]
    assert len(set(full)) <= 9 < len(set(sizes.tolist())) / 5
    assert all(size <= more < size * (1 + 2**-4) for size, more in zip(sizes, full, strict=True))


def test_training_without_noise_learns() -> None:
    recipe = quick("fft", epsilon=math.inf, clip=None, steps=150, lr=0.3)
    run = finetune(TASK, BODY, recipe, evaluations=1)
    assert run.train_accuracy[-1] == 1.0
    assert np.isnan(run.clip_rate).all()


@pytest.mark.parametrize("head", ["zero", "gaussian", "prototype"])
def test_heads(head: Any) -> None:
    tuning = FineTuning(TASK, BODY, quick("lp", head=head, head_scale=3.0))
    tuning._initial_head()
    weight = tuning.model.head.weight
    if head == "zero":
        assert not weight.any()
    elif head == "prototype":
        torch.testing.assert_close(weight.norm(dim=1), torch.full((3,), 3.0))
    else:
        # the variance of 18 draws
        assert 0.3 < weight.square().mean() / (9.0 / 6) < 2.5


def test_prototypes_are_class_means_but_for_the_noise() -> None:
    tuning = FineTuning(TASK, BODY, quick("lp", head="prototype", epsilon=math.inf, clip=None))
    tuning._initial_head()
    with torch.no_grad():
        features = nn.functional.normalize(tuning.model.body(torch.from_numpy(TASK.normalised(TASK.train))))
    for label in range(3):
        mean = features[torch.tensor(TASK.train.labels) == label].mean(0)
        cosine = nn.functional.cosine_similarity(
            tuning.model.head.weight[label].double(), mean.double(), dim=0
        )
        # of the square of what twenty roundings in single precision turn them by
        assert cosine > 1 - (20 * torch.finfo(torch.float32).eps) ** 2


def test_prototypes_have_the_noise_that_is_paid_for() -> None:
    recipe = quick("lp", head="prototype", epsilon=4.0, delta=1e-3)
    tuning = FineTuning(TASK, BODY, recipe)
    tuning._initial_head()
    paid = recipe.history(SAMPLES)["prototypes"]
    # a sample of one class has a row of norm 1 in one sum, whatever its features
    assert (paid.sample_rate, paid.steps, paid.clip) == (1.0, 1, 1.0)
    assert paid.noise_multiplier is not None
    with torch.no_grad():
        units = nn.functional.normalize(tuning.model.body(torch.from_numpy(TASK.normalised(TASK.train))))
    sums = torch.stack([units[torch.tensor(TASK.train.labels) == label].sum(0) for label in range(3)])
    noise = tuning._streams.noise(network._PROTOTYPES, 0, sums.numel(), sums.dtype).view_as(sums)

    def off(multiplier: float) -> float:
        expected = nn.functional.normalize(sums + multiplier * noise)
        return float((tuning.model.head.weight.detach() - expected).abs().max())

    assert off(paid.noise_multiplier) < 1e-5
    assert off(2 / 3 * paid.noise_multiplier) > 1e-2


# ---- empty batches, leaks, divergence


def test_empty_batches_are_steps_of_noise() -> None:
    run = finetune(TASK, CONV, quick("fft", batch=0.5, steps=20, lr=0.01))
    assert (run.batch == 0).any()
    assert (run.batch > 0).any()
    assert np.isfinite(run.test_loss).all()
    assert np.isnan(run.clip_rate[run.batch == 0]).all()
    assert History.from_dict(json.loads(run.attrs["privacy"])).steps == 20


class Normalised(nn.Sequential):
    """A body with batch normalisation, pre-trained on other statistics."""

    features = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for _ in range(5):
            self(torch.randn(16, *SHAPE))


@pytest.mark.parametrize("method", ["lp", "fft", "lp-fft", "bitfit"])
def test_private_images_change_nothing_but_through_clipped_gradients(method: Any) -> None:
    """A clip so small that gradients have no weight leaves a run that does not depend on private images."""
    other = make_task()
    darker = Part(0.2 * other.train.images, other.train.labels, other.train.classes)
    other = Images(darker, other.test, other.public)
    found = []
    for task in (TASK, other):
        tuning = FineTuning(task, Normalised(), quick(method, clip=1e-12, epsilon=math.inf, head="zero"))
        run = tuning.run()
        found.append((run.test_loss, tuning.model.state_dict()))
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=0, atol=1e-9)
    # batch normalisation in training mode would have learnt from them
    leaky = Normalised().train()
    before = leaky.state_dict()["1.running_mean"].clone()
    leaky(torch.from_numpy(other.normalised(other.train)))
    assert (leaky.state_dict()["1.running_mean"] - before).abs().max() > 1e-3


class Centred(nn.Module):
    """A layer that no list of known kinds has, through which images meet."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("method", ["lp", "fft"])
def test_bodies_in_which_images_meet_are_refused(method: Any) -> None:
    mixing = copy.deepcopy(BODY)
    mixing.insert(1, Centred())
    with pytest.raises(NotPrivateError, match="from Centred at '1' on"):
        FineTuning(TASK, mixing, quick(method))
    with pytest.raises(ValueError, match=r"single precision, got torch.float64 in '1.weight': call float"):
        FineTuning(TASK, copy.deepcopy(BODY).double(), quick(method))


# ---- mixed precision


@pytest.mark.parametrize(
    ("body", "kind"), [(BODY, "closed"), (CONV, "ghost"), (CONV, "hooks"), (CONV, "functorch")]
)
def test_clipped_sums_keep_their_bound_in_mixed_precision(body: nn.Module, kind: Any) -> None:
    """Of equal images the clipped sum has the norm of their number times the clip."""
    images = np.repeat(TASK.train.images[:1], SAMPLES, 0)
    part = Part(images, np.zeros(SAMPLES, int), ["a", "b", "c"])

    def released(clip: float) -> torch.Tensor:
        recipe = quick("fft", epsilon=math.inf, batch=SAMPLES, clip=clip, engine=kind)
        tuning = FineTuning(Images(part, part, TASK.public), body, recipe, precision="mixed")
        tuning._initial_head()
        sums = tuning._stepper.release(tuning._stages.enter(0), 0).sums
        assert all(r.dtype == torch.float32 for r in sums)
        return torch.cat([r.flatten() for r in sums])

    # a threshold that no gradient reaches: the sum of the gradients themselves
    whole = released(1e6).double()
    # and one that puts the largest entry half-way between two neighbours in bfloat16
    factor = (1 + 2**-8) * 2**-10 / whole.abs().max().item()
    clip = factor * whole.norm().item() / SAMPLES
    total = released(clip)
    # sums of sixty terms, by norms of so many entries, in single precision
    tolerance = (SAMPLES + len(total)) * torch.finfo(torch.float32).eps / 2

    def off(found: torch.Tensor) -> float:
        return float((found.double() - factor * whole).abs().max() / (factor * whole).abs().max())

    assert abs(total.double().norm().item() / (SAMPLES * clip) - 1) < tolerance
    assert off(total) < tolerance
    # the control: rounded to bfloat16 that entry is off by 2^-8, whatever the processor
    assert off(total.bfloat16()) > 10 * tolerance


def test_divergence_is_named_and_keeps_the_record() -> None:
    recipe = quick("fft", epsilon=math.inf, clip=None, lr=1e30, steps=12)
    with pytest.raises(
        Diverged, match=r"no longer finite between steps \d+ and \d+: use a smaller lr"
    ) as caught:
        finetune(TASK, BODY, recipe, evaluations=4)
    assert np.isfinite(caught.value.run.test_loss[0])
    assert np.isnan(caught.value.run.test_loss[-1])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["closed", "ghost", "hooks", "loop"])
def test_a_sample_without_a_finite_gradient_moves_nothing(
    kind: Any, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if full:
        monkeypatch.setattr(step, "_filled", fivefold)
    tuning = FineTuning(TASK, BODY, quick("fft", engine=kind, epsilon=8.0), rng=0)
    tuning._initial_head()
    active = tuning._stages.enter(0)
    batch = torch.arange(8)
    right, _ = tuning._stepper.sums(active, batch[1:])
    data = active.data[torch.arange(len(active.data))]
    data[0] = math.nan
    active.data = data
    found, counts = tuning._stepper.sums(active, batch)
    assert counts[2] == 1
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)
    # the control: clipped and summed, it would leave no number
    norms = active.gradients.norms(active.data[batch], active.labels[batch])
    assert norms is not None
    total = active.gradients.total(factors(norms, 1.0, "flat", 0.0))
    assert any(bool(s.isnan().any()) for s in total)
    empty, counts = tuning._stepper.sums(active, batch[:1])
    assert counts[2] == 1
    assert not any(bool(s.any()) for s in empty)


def test_divergence_under_clipping_is_named() -> None:
    tuning = FineTuning(TASK, BODY, quick("fft", epsilon=8.0), rng=0, evaluations=2)

    def overflow(done: int, _: int) -> None:
        with torch.no_grad():
            for p in tuning.model.parameters():
                p.fill_(1e38)

    with pytest.raises(Diverged, match="no gradient is finite any more between steps 0 and 6"):
        tuning.run(overflow)


# ---- resumption and the privacy record


class Killed(BaseException):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, after: int, where: str) -> None:
    """End a run at the ``after``-th call: before or after its state is written, or in a step."""
    calls = 0
    owner, name = (FineTuning, "_step") if where == "step" else (Checkpoint, "write")
    original = getattr(owner, name)

    def dying(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after and where == "before":
            raise Killed
        result = original(self, *args)
        if calls == after and where != "before":
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


RESUMED = [
    ("lp-fft", {"momentum": 0.5}, BODY),
    ("lp", {"head": "prototype"}, BODY),
    ("lora", {"lp_share": 0.5, "momentum": 0.9}, CONV),
    ("sparse", {"momentum": 0.5}, BODY),
    ("sparse", {"selection": "magnitude", "lp_share": 0.25}, CONV),
    ("fft", {"drop": 0.1}, CONV),
]


KILLS = [("before", 3), ("after", 4), ("step", 1), ("step", 8)]


# the quick tests end each run at two of the moments, and half of the runs at each moment
@pytest.mark.parametrize(
    ("method", "options", "body", "where", "after"),
    [
        pytest.param(*run, *kill, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, run in enumerate(RESUMED)
        for j, kill in enumerate(KILLS)
    ],
    ids=lambda v: str(v) if isinstance(v, str | int) else "",
)
def test_a_killed_run_goes_on_to_the_same_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    options: Any,
    body: Any,
    where: str,
    after: int,
) -> None:
    recipe = quick(method, **options)
    whole = finetune(TASK, body, recipe, rng=2, evaluations=5)
    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        killing(patch, after, where)
        with pytest.raises(Killed):
            finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path)
    resumed = finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True)
    assert same(resumed, whole)
    # every step is in the record, once
    assert read(tmp_path / "run.npz.ledger") == recipe.history(SAMPLES)
    # and once more: nothing is left to do
    assert same(finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True), whole)


@pytest.mark.parametrize("after", [1, 2, 7, 12])
def test_the_record_never_lacks_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    path = tmp_path / "run.npz"
    killing(monkeypatch, after, "step")
    with pytest.raises(Killed):
        finetune(TASK, BODY, quick("fft"), evaluations=4, checkpoint=path)
    claimed = read(tmp_path / "run.npz.ledger").steps
    assert after <= claimed <= after + 2  # to the end of the block of three


def test_a_resumed_run_keeps_the_engine_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, recipe, path = convnet(TASK.train.shape, (8,), rng=0), quick("fft"), tmp_path / "run.npz"
    whole = finetune(TASK, body, recipe, rng=2, evaluations=5)
    assert json.loads(whole.attrs["engines"]) == {"fft": "ghost"}
    with monkeypatch.context() as patch:
        killing(patch, 8, "step")
        with pytest.raises(Killed):
            finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path)
    # another measurement, another choice
    other = {"fft": trial.Choice("loop")}
    monkeypatch.setattr(trial, "choose_all", lambda *_: other)
    resumed = finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True)
    assert resumed.attrs["engines"] == whole.attrs["engines"]
    assert same(resumed, whole)


def test_process_killed_in_mid_step_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    program = (
        "import os, signal, sys\n"
        "from tests.empirical.train.test_train import BODY, TASK, quick\n"
        "from empirical.train.fine_tuning import finetune\n"
        "def progress(done, total):\n"
        "    if done == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "finetune(TASK, BODY, quick(), rng=2, evaluations=4, checkpoint=sys.argv[1], progress=progress)\n"
    )
    root = Path(__file__).parents[3]
    done = execute([sys.executable, "-c", program, str(path)], cwd=root)
    assert done.returncode == -9
    assert read(tmp_path / "run.npz.ledger").steps == 9
    resumed = finetune(TASK, BODY, quick(), rng=2, evaluations=4, checkpoint=path, resume=True)
    assert same(resumed, finetune(TASK, BODY, quick(), rng=2, evaluations=4))


def test_fresh_entropy_resumes_from_the_checkpoints_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        killing(patch, 5, "step")
        with pytest.raises(Killed):
            finetune(TASK, BODY, quick(), rng=None, evaluations=4, checkpoint=path)
    run = finetune(TASK, BODY, quick(), rng=None, evaluations=4, checkpoint=path, resume=True)
    assert np.isfinite(run.test_loss).all()


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    finetune(TASK, BODY, quick(), checkpoint=path)
    with pytest.raises(StoreError, match="already exists: resume it"):
        finetune(TASK, BODY, quick(), checkpoint=path)
    for task, body, recipe, rng, named in (
        (TASK, BODY, quick(lr=0.6), 0, "recipe"),
        (TASK, mlp(SHAPE, (8, 6), rng=1), quick(), 0, "body"),
        (make_task(57), BODY, quick(), 0, "task"),
        (TASK, BODY, quick(), 1, "its rng was another"),
    ):
        with pytest.raises(StoreError, match=f"another run: .*{named}|another run: {named}"):
            finetune(task, body, recipe, rng=rng, checkpoint=path, resume=True)
    with pytest.raises(StoreError, match="there is no checkpoint"):
        finetune(TASK, BODY, quick(), checkpoint=tmp_path / "none.npz", resume=True)


def test_a_lost_record_is_refused(tmp_path: Path) -> None:
    path, ledger = tmp_path / "run.npz", tmp_path / "run.npz.ledger"
    finetune(TASK, BODY, quick(), checkpoint=path)
    kept = ledger.read_bytes()
    ledger.unlink()
    with pytest.raises(LedgerError):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)
    ledger.write_bytes(kept[: kept.index(b"\n") + 1])
    with pytest.raises(LedgerError, match="does not go through the head"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)
    ledger.write_bytes(kept)
    path.unlink()
    with pytest.raises(LedgerError, match="privacy was spent"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.npz"
    finetune(TASK, BODY, quick(), checkpoint=path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\0" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)


def test_the_run_says_what_it_released() -> None:
    run = finetune(TASK, BODY, quick("lp-fft"))
    history = History.from_dict(json.loads(run.attrs["privacy"]))
    assert history == quick("lp-fft").history(SAMPLES)
    report = str(account(history))
    for part in (
        "delta 0.0001",
        "60 samples",
        "sample rate 0.25",
        "noise multiplier",
        "clip 1",
        "add-remove",
    ):
        assert part in report


# ---- several processes


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Through gloo, with batches so small that a process's share is often empty, and one process late."""
    program = tmp_path / "job.py"
    program.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from empirical.devices.parallel import Group, join\n"
        "import torch\n"
        "from empirical.train.checkpoint import Checkpoint\n"
        "from empirical.train.fine_tuning import FineTuning, finetune\n"
        "from tests.empirical.train.test_train import CONV, TASK, quick\n"
        "device = join('cpu')\n"
        "initial = FineTuning._initial_head\n"
        "def rounded_otherwise(self):\n"
        "    initial(self)\n"
        "    self.model.head.weight.data[0] += torch.distributed.get_rank()\n"
        "FineTuning._initial_head = rounded_otherwise\n"
        "# late: until the first process has written its state, or waits for the others\n"
        "made, agreed, waits = Checkpoint.__init__, Group.agreed, Path(sys.argv[2] + '.waits')\n"
        "def late(self, *args, owner):\n"
        "    made(self, *args, owner=owner)\n"
        "    if owner: Group.agreed = waiting\n"
        "    while not (owner or self.path.exists() or waits.exists()): time.sleep(.01)\n"
        "def waiting(self, value):\n"
        "    waits.touch()\n"
        "    return agreed(self, value)\n"
        "Checkpoint.__init__ = late\n"
        "how = dict(evaluations=3, device=device, checkpoint=sys.argv[2])\n"
        "run = finetune(TASK, CONV, quick('fft', batch=1.5), **how)\n"
        "if torch.distributed.get_rank() == 0: run.to_netcdf(sys.argv[1])\n"
        "torch.distributed.destroy_process_group()\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = tmp_path / "run.nc"
    done = execute(
        [*command, str(program), str(out), str(tmp_path / "run.npz")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    alone = finetune(TASK, CONV, quick("fft", batch=1.5), evaluations=3)
    assert (alone.batch <= 1).any()
    with xr.open_dataset(out) as together:
        np.testing.assert_allclose(together.test_loss, alone.test_loss, rtol=1e-4)
        np.testing.assert_array_equal(together.batch, alone.batch)
        np.testing.assert_allclose(together.clip_rate, alone.clip_rate, rtol=1e-5)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"precision": "half"}, "precision must be one of"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda'"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(TASK, BODY, quick(), **options)


def test_options_are_an_object_or_keywords() -> None:
    options = RunOptions(rng=3, evaluations=1)
    kept = finetune(TASK, BODY, quick(), options)
    assert same(kept, finetune(TASK, BODY, quick(), rng=3, evaluations=1))
    other = finetune(TASK, BODY, quick(), options, rng=4)
    assert other.sizes["step"] == 2
    assert not same(other, kept)
    with pytest.raises(TypeError, match="'evalutions'"):
        FineTuning(TASK, BODY, quick(), evalutions=1)
    with pytest.raises(ValueError, match="evaluations must be at least 1"):
        RunOptions(evaluations=0)


def test_measures_of_a_watch_are_recorded() -> None:
    class Norm:
        def __call__(self, body: nn.Module, head: nn.Linear) -> dict[str, float]:
            assert not body.training
            return {"norm": float(next(body.parameters()).detach().norm())}

    run = finetune(TASK, BODY, quick("lp-fft", steps=12), evaluations=4, watch=Norm())
    assert np.ptp(run.norm.values[:3]) == 0
    assert np.ptp(run.norm.values[2:]) > 0
    assert fine_tuning.EVALUATIONS.keys() <= set(run.data_vars)
