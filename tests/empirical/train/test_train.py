"""Fine-tuning: a step by hand, stages, processes."""

from __future__ import annotations

import copy
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
from empirical.train import fine_tuning, network
from empirical.train.fine_tuning import FineTuning, RunOptions, finetune
from empirical.train.gradients.opacus import PerSample
from tests.empirical.train.tasks import BODY, CONV, SAMPLES, TASK, quick
from tests.helpers import execute

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


def test_chunks_of_a_batch_have_about_equal_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    of = PerSample.norms

    def norms(self: PerSample, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return of(self, x, y)

    monkeypatch.setattr(PerSample, "norms", norms)
    tuning = FineTuning(TASK, CONV, quick("fft", engine="hooks"), chunk=8)
    active = tuning._stages.enter(0)
    for size, sizes in ((0, []), (1, [1]), (8, [8]), (9, [5, 4]), (20, [7, 7, 6])):
        seen.clear()
        tuning._stepper.sums(active, torch.arange(size))
        assert seen == sizes


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
        "from tests.empirical.train.tasks import CONV, TASK, quick\n"
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
    assert kept.equals(finetune(TASK, BODY, quick(), rng=3, evaluations=1))
    other = finetune(TASK, BODY, quick(), options, rng=4)
    assert other.sizes["step"] == 2
    assert not other.equals(kept)
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
