"""The two-layer network of the theory as a torch module, and its schedules as real DP-SGD."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from empirical.data.images import Images
from empirical.devices import ambient
from empirical.networks.bodies import Classifier, mlp
from empirical.train.gradients.engine import engine
from empirical.train.gradients.plain import Gradients, factors
from empirical.train.losses import Loss, Scalar
from empirical.train.streams import Streams
from langevin.engine import noise
from langevin.model.problem import Activation, Problem, require_scalar
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import grid
from langevin.model.weights import GramWeights, Weights
from langevin.support import validate
from langevin.support.rng import RNG, generator

if TYPE_CHECKING:
    import xarray as xr


def to_torch(weights: Weights, activation: Activation = "relu") -> Classifier:
    """The network ``f(x) = sum_j v_j phi(w_j . x)`` as a classifier of one output, in double precision.

    Parameters
    ----------
    weights : Weights
        With neurons; a Gram matrix alone does not determine them.
    activation : str
        Of `empirical.networks.bodies.ACTIVATIONS`.

    Examples
    --------
    >>> weights = Weights([[1.0, 0.0], [0.0, -1.0]], [0.5, -0.5])
    >>> to_torch(weights)(torch.tensor([[2.0, -4.0]], dtype=torch.float64)).item()
    -1.0
    """
    if isinstance(weights, GramWeights):
        raise TypeError("weights must hold the neurons, got GramWeights: use Weights")
    with ambient.ordinary(), torch.no_grad():
        body = mlp((weights.dim,), (weights.width,), activation=activation, bias=False)
        model = Classifier(body, 1).double()
        first, head = _layers(model)
        first.weight.copy_(torch.tensor(weights.W))
        head.weight.copy_(torch.tensor(weights.v)[None])
    return model


def from_torch(model: nn.Module) -> Weights:
    """Weights of a two-layer classifier of one output and without biases: the inverse of `to_torch`.

    Raises
    ------
    ValueError
        If the network is another.
    """
    first, head = _layers(model)
    return Weights(first.weight.detach().double().numpy(), head.weight.detach()[0].double().numpy())


def _layers(model: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if (
        len(linear) != 2
        or linear[1].out_features != 1
        or any(layer.bias is not None for layer in linear)
        or sum(p.numel() for p in model.parameters()) != sum(layer.weight.numel() for layer in linear)
    ):
        raise ValueError(
            f"model must be a two-layer network of one output without biases, got {type(model).__name__} "
            f"with linear layers {[(layer.in_features, layer.out_features) for layer in linear]}"
        )
    return linear[0], linear[1]


def problem_of(task: Images, classes: Sequence[str], *, activation: Activation = "relu") -> Problem:
    """Two classes of a private task as a `Problem`: -1 for the first, +1 for the second; test images too.

    Pixels are normalised by the public part, and each image is divided by the root of its number of pixels,
    so that inputs have norms about 1.

    Parameters
    ----------
    task : Images
        With a public part.
    classes : sequence of two str
    activation : {"relu", "linear"}

    Examples
    --------
    >>> from empirical import digits
    >>> problem_of(digits(), ["3", "8"]).dim
    64
    """
    if len(classes) != 2:
        raise ValueError(f"classes must be two names, got {list(classes)}")
    arrays: list[np.ndarray] = []
    for part in (task.train.only(classes), task.test.only(classes)):
        pixels = task.normalised(part).reshape(len(part), -1).astype(np.float64)
        arrays += [pixels / math.sqrt(pixels.shape[1]), 2.0 * part.labels - 1.0]
    X, y, X_test, y_test = arrays
    return Problem(X, y, activation, X_test=X_test, y_test=y_test)


def run_schedule(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    dt: float,
    sample_rate: float | None = None,
    paths: int = 1,
    rng: RNG = 0,
    times: ArrayLike | None = None,
) -> xr.Dataset:
    """Run a schedule as DP-SGD, with real per-sample gradients of the torch network.

    A full-batch step of learning rate ``dt`` is a step of ``euler_maruyama(..., reduce="none")`` with the
    same draws, up to rounding, for the same ``rng``. With a ``sample_rate`` ``q`` batches are Poisson and the
    clipped sum is divided by ``q``: the same drift in the mean and the same noise of the mechanism, with the
    noise of sampling on top, which no diffusion of the theory has.

    Parameters
    ----------
    problem : Problem
    weights : Weights
    schedule : Schedule
    dt : float
        Step, in units of diffusion time: the learning rate with full batches, that over ``n`` with Poisson
        ones (see `langevin.DPSGD`).
    sample_rate : float, optional
        In (0, 1].
    paths : int
    rng : int, Generator or None
        Key of the noise, as in `langevin.euler_maruyama`; batches are drawn from it, too.
    times : array_like, optional
        As in `langevin.euler_maruyama`.

    Returns
    -------
    xarray.Dataset
        ``loss`` and, for labels -1 and +1, ``accuracy`` over ``(path, time)``; ``test_accuracy`` if there are
        held-out points.

    Examples
    --------
    >>> from langevin import Schedule, collapsed_features, orthogonally_separable
    >>> problem = orthogonally_separable(samples=8, dim=4, rng=0)
    >>> weights = collapsed_features(problem, width=16, rng=0)
    >>> schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.1, clip=1.0)
    >>> run = run_schedule(problem, weights, schedule, dt=0.01, times=[0.0, 0.2])
    >>> bool(run.loss[0, -1] < run.loss[0, 0])
    True
    """
    import xarray as xr

    require_scalar(problem, schedule, "run_schedule")
    paths = validate.integer("paths", paths, 1)
    rate = 1.0 if sample_rate is None else validate.fraction("sample_rate", sample_rate)
    if rate == 0:
        raise ValueError("sample_rate must lie in (0, 1], got 0")
    steps = grid(schedule, dt, times)
    random = generator(rng, "noise")
    key = noise.key(random)
    streams = Streams(random)
    loss = Scalar(problem.loss)
    x, y = torch.tensor(problem.X), torch.tensor(problem.y)
    found = {"loss": np.full((paths, len(steps.record_steps)), np.nan)}
    if problem.classification:
        found["accuracy"] = np.full_like(found["loss"], np.nan)
        if problem.X_test is not None:
            found["test_accuracy"] = np.full_like(found["loss"], np.nan)
    places = {step: place for place, step in enumerate(steps.record_steps.tolist())}

    for path in range(paths):
        model = to_torch(weights, problem.activation)
        first, head = _layers(model)
        number = 0
        for phase, count in zip(schedule, steps.phase_steps, strict=True):
            first.weight.requires_grad_(phase.method == "fft")
            gradients = engine(model, loss, "closed", clip=True)
            spread = phase.sigma * math.sqrt(2 * dt)
            for _ in range(count):
                _observe(found, path, places.get(number), model, loss, problem)
                chosen = torch.from_numpy(streams.batch(path, number, len(y), rate))
                sums = _clipped(gradients, x[chosen], y[chosen], phase)
                draws = noise.weight_noise(key, path, number, weights.width, weights.dim)
                of = dict(zip((first.weight, head.weight), map(torch.from_numpy, draws), strict=True))
                with torch.no_grad():
                    for p, total in zip(gradients.params, sums, strict=True):
                        p += spread * of[p].view_as(p) - dt / rate * total
                number += 1
        _observe(found, path, places.get(number), model, loss, problem)
    config = {
        "schedule": [asdict(phase) for phase in schedule],
        "dt": dt,
        "sample_rate": sample_rate,
        "key": list(key),
    }
    return xr.Dataset(
        {name: (("path", "time"), values) for name, values in found.items()},
        {"path": np.arange(paths), "time": ("time", steps.times, {"units": "diffusion time"})},
        {"title": "DP-SGD of a two-layer network", "source": "empirical", "config": json.dumps(config)},
    )


def _clipped(gradients: Gradients, x: Tensor, y: Tensor, phase: Phase) -> list[Tensor]:
    """Sum of the clipped gradients of a batch."""
    norms = gradients.norms(x, y)
    assert norms is not None
    if phase.clip is None:
        return gradients.total(None)
    return gradients.total(factors(norms, phase.clip, phase.clipping, phase.stabiliser))


@torch.no_grad()
def _observe(
    found: dict[str, np.ndarray],
    path: int,
    record: int | None,
    model: nn.Module,
    loss: Loss,
    problem: Problem,
) -> None:
    """Enter what is observed at a record; None: not at this step."""
    if record is None:
        return
    outputs, y = model(torch.tensor(problem.X)), torch.tensor(problem.y)
    found["loss"][path, record] = loss.value(outputs, y).sum().item()
    if "accuracy" in found:
        found["accuracy"][path, record] = loss.correct(outputs, y).double().mean().item()
    if "test_accuracy" in found:
        right = loss.correct(model(torch.tensor(problem.X_test)), torch.tensor(problem.y_test))
        found["test_accuracy"][path, record] = right.double().mean().item()
