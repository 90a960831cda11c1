"""Memory of fine-tuning: foreseen, refused in numbers, and done with less where it runs out on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from empirical import pretrain
from empirical.devices import memory
from empirical.networks.bodies import convnet, mlp
from empirical.recipe import Recipe
from empirical.train.fine_tuning import FineTuning, finetune
from empirical.train.gradients.engine import engine
from empirical.train.losses import CrossEntropy
from tests.empirical.train.tasks import BODY, CONV, SHAPE, TASK, quick

CPU = torch.device("cpu")


def test_what_an_image_keeps_is_counted_once() -> None:
    x = 4 * int(np.prod(SHAPE))
    # inputs of three layers, of which the ReLUs keep their outputs, which are those of the layers after
    widths = [nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()]
    assert memory.kept(nn.Sequential(*widths), SHAPE) == x + 4 * 8 + 4 * 6
    more = memory.kept(convnet(SHAPE, widths=(16, 32), groups=4, rng=0), SHAPE)
    assert more > 1.5 * memory.kept(CONV, SHAPE)


def test_counting_leaves_the_body_as_it_was() -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    body[1].eval()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    memory.kept(body, SHAPE)
    assert torch.rand(1) == expected
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert [layer.training for layer in body] == [True, False, True, True]


def test_a_frozen_body_is_counted_as_one_that_trains() -> None:
    frozen = convnet(SHAPE, widths=(8, 16), groups=4, rng=0).requires_grad_(False)
    assert memory.kept(frozen, SHAPE) == memory.kept(CONV, SHAPE) > 0
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_refused_body_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    body = convnet(SHAPE, widths=(8, 16), groups=4, rng=0).eval()
    monkeypatch.setattr(memory, "free", lambda device: 2**14)
    with pytest.raises(MemoryError):
        pretrain(body, TASK, epochs=1)
    assert not any(layer.training for layer in body.modules())


@pytest.mark.parametrize("job", ["fine-tuning", "pre-training"])
def test_too_much_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    def start() -> Any:
        if job == "fine-tuning":
            return FineTuning(TASK, CONV, quick("fft"))
        return pretrain(convnet(SHAPE, widths=(8, 16), groups=4, rng=0), TASK, epochs=1)

    monkeypatch.setattr(memory, "free", lambda device: 2**30)
    start()
    monkeypatch.setattr(memory, "free", lambda device: 2**14)
    with pytest.raises(MemoryError, match=r"training on cpu, of \d+ images .* GiB are free: use fewer"):
        start()


def test_chunks_are_what_fits() -> None:
    assert memory.chunk(2**20, 10_000, CPU) == 1024
    assert memory.chunk(2**20, 100, CPU) == 100
    assert memory.chunk(2**40, 100, CPU) == 1
    assert memory.chunk(0, 100, CPU) == 100


def test_a_gpu_gives_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 2**30)
    assert memory.chunk(2**20, 10_000, torch.device("cuda")) == 512


class Full(CrossEntropy):
    """Runs out of memory, between the passes, where it sees more than so many samples."""

    def __init__(self, most: int) -> None:
        self.most, self.times = most, 0

    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.requires_grad and len(outputs) > self.most:
            self.times += 1
            raise torch.OutOfMemoryError("out of memory")
        return super().value(outputs, targets)

    def slope(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(outputs) > self.most:
            self.times += 1
            raise torch.OutOfMemoryError("out of memory")
        return super().slope(outputs, targets)


def filled(most: int, body: nn.Module, recipe: Recipe) -> tuple[Any, Full]:
    tuning = FineTuning(TASK, body, recipe)
    tuning._stages._loss = full = Full(most)
    return tuning.run(), full


@pytest.mark.parametrize(
    ("body", "kind"),
    [(BODY, "closed"), (CONV, "ghost"), (CONV, "hooks"), (CONV, "functorch"), (CONV, "plain")],
)
def test_a_step_that_runs_out_of_memory_is_done_in_smaller_parts(body: nn.Module, kind: Any) -> None:
    recipe = quick("fft", clip=None, epsilon=np.inf) if kind == "plain" else quick("fft", engine=kind)
    whole = finetune(TASK, body, recipe)
    cut, full = filled(3, body, recipe)
    assert full.times > 1
    # except for rounding; half a pass that Opacus remembered would be added to the next
    np.testing.assert_allclose(cut.test_loss, whole.test_loss, rtol=1e-4)
    np.testing.assert_allclose(cut.gradient_norm, whole.gradient_norm, rtol=1e-4)
    assert (cut.batch == whole.batch).all()


def test_a_step_that_cannot_be_done_in_any_parts_is_named() -> None:
    with pytest.raises(MemoryError, match=r"one image at a time needs more than the [\d.e+]+ GiB"):
        filled(0, CONV, quick("fft"))


def test_features_that_do_not_fit_are_computed_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finetune(TASK, CONV, quick("lp"))
    seen: list[int] = []

    def tight(body: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 7:
            raise torch.OutOfMemoryError("out of memory")

    tuning = FineTuning(TASK, CONV, quick("lp"))
    tuning.model.body.register_forward_pre_hook(tight)
    np.testing.assert_allclose(tuning.run().test_loss, whole.test_loss, rtol=1e-5)
    assert max(seen) > 7 >= min(seen)


class Named(nn.Module):
    """A body with attributes of the names that Opacus takes."""

    features = 3

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 3)
        self.activations = nn.ModuleList([nn.Tanh()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activations[0](self.first(x.flatten(1)))


@pytest.mark.parametrize("kind", ["ghost", "hooks", "functorch"])
def test_what_is_the_bodys_own_is_not_forgotten(kind: Any) -> None:
    body = Named()
    gradients = engine(body, CrossEntropy(), kind, clip=True)
    x, y = torch.rand(5, *SHAPE), torch.zeros(5, dtype=torch.long)
    gradients.norms(x, y)
    gradients.total(torch.ones(5))
    gradients.close()
    assert body(x).shape == (5, 3)


def test_layers_forget_half_a_pass() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 3))
    for kind in ("ghost", "hooks"):
        gradients = engine(model, Full(0), kind, clip=True)
        with pytest.raises(torch.OutOfMemoryError):
            gradients.norms(torch.rand(5, *SHAPE), torch.zeros(5, dtype=torch.long))
        # the control: there is something to forget
        assert hasattr(model[1], "activations")
        gradients.close()
        assert not any(hasattr(layer, "activations") for layer in model)


def test_a_wide_body_is_worked_on_in_parts() -> None:
    body = mlp(SHAPE, (8,), rng=0)
    tuning = FineTuning(TASK, body, quick("fft"))
    tuning.run()
    assert tuning._stages.active is not None
    assert tuning._stages.active.chunk > len(TASK.train)
    wide = FineTuning(TASK, body, quick("fft"))
    wide._network.kept_of_one = memory._CHUNK_BYTES // 16
    wide.run()
    assert wide._stages.active is not None
    # what is kept, and as much again for its gradients
    assert wide._stages.active.chunk == 8
