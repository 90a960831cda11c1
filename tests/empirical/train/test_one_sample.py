"""What one sample can do to a step: nothing beyond its clipped gradient, whatever it holds."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from empirical.data.images import Images, Part
from empirical.networks.private import NotPrivateError
from empirical.privacy.history import History
from empirical.train.fine_tuning import FineTuning, finetune
from empirical.train.gradients.plain import factors
from langevin.solvers.errors import Diverged
from tests.empirical.train.tasks import BODY, CONV, SAMPLES, SHAPE, TASK, make_task, quick


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


@pytest.mark.parametrize("kind", ["closed", "ghost", "hooks", "loop"])
def test_a_sample_without_a_finite_gradient_moves_nothing(kind: Any) -> None:
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
