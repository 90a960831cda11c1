"""The two-layer network of the theory as a torch module, and schedules of its DP-SGD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from empirical.data.images import Images
from empirical.devices import ambient
from empirical.networks.bodies import Classifier, mlp
from langevin.model.problem import Activation, Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import GramWeights, Weights
from langevin.solvers.diffusion import euler_maruyama
from langevin.support import validate
from langevin.support.rng import RNG

if TYPE_CHECKING:
    import xarray as xr


def to_torch(weights: Weights, activation: Activation = "relu") -> Classifier:
    """The network ``f(x) = sum_j v_j phi(w_j . x)`` as a classifier, in double precision.

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
        model = Classifier(body, weights.outputs_dim).double()
        first, head = _layers(model)
        first.weight.copy_(torch.tensor(weights.W))
        head.weight.copy_(torch.tensor(np.atleast_2d(weights.v.T)))
    return model


def from_torch(model: nn.Module) -> Weights:
    """Weights of a two-layer classifier without biases: the inverse of `to_torch`.

    Raises
    ------
    ValueError
        If the network is another.
    """
    first, head = _layers(model)
    W, v = (layer.weight.detach().double().numpy() for layer in (first, head))
    return Weights(W, v[0] if len(v) == 1 else v.T)


def _layers(model: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if (
        len(linear) != 2
        or any(layer.bias is not None for layer in linear)
        or sum(p.numel() for p in model.parameters()) != sum(layer.weight.numel() for layer in linear)
    ):
        raise ValueError(
            f"model must be a two-layer network without biases, got {type(model).__name__} "
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
    """Run a schedule as DP-SGD of the two-layer network.

    This is the chain of `langevin.euler_maruyama` in its full form, ``reduce="none"``. Tests hold it equal,
    step by step, to Opacus on the network of `to_torch`, with the same batches and noise: a step with
    learning rate ``dt`` on the sum of the clipped gradients of all samples, or, with a sample rate ``q``, on
    that of a Poisson batch, divided by ``q``. Batches have the same mean drift and the same noise of the
    mechanism, and the noise of sampling in addition, which no diffusion of the theory has.

    Parameters
    ----------
    problem : Problem
    weights : Weights
    schedule : Schedule
    dt : float
        Step, in units of diffusion time: the learning rate for sums of gradients, or that for means divided
        by ``n``; `langevin.DPSGD` converts.
    sample_rate : float, optional
        Poisson rate of all phases, in (0, 1]; by default each phase has its own.
    paths : int
    rng : int, Generator or None
        Source of the key of the noise and the batches, as in `langevin.euler_maruyama`.
    times : array_like, optional
        As in `langevin.euler_maruyama`.

    Returns
    -------
    xarray.Dataset
        ``loss`` and, for labels -1 and +1 or classes, ``accuracy`` over ``(path, time)``; ``test_accuracy``
        if there are held-out points.

    Raises
    ------
    ValueError, TypeError, Diverged
        As `langevin.euler_maruyama` does.

    Examples
    --------
    >>> from langevin import Schedule, collapsed_features, orthogonally_separable
    >>> problem = orthogonally_separable(samples=8, dim=4, rng=0)
    >>> weights = collapsed_features(problem, width=16, rng=0)
    >>> schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.1, clip=1.0)
    >>> run = run_schedule(problem, weights, schedule, dt=0.01, sample_rate=0.5, times=[0.0, 0.2])
    >>> bool(run.loss[0, -1] < run.loss[0, 0])
    True
    """
    validate.original("schedule", schedule, Schedule)
    if sample_rate is not None:
        rate = validate.rate("sample_rate", sample_rate)
        schedule = Schedule([replace(phase, sample_rate=rate) for phase in schedule])
    validate.original("problem", problem, Problem)
    held_out = ["test_accuracy"] if problem.classification and problem.X_test is not None else []
    run = euler_maruyama(
        problem,
        weights,
        schedule,
        dt=dt,
        paths=paths,
        rng=rng,
        times=times,
        observables=held_out,
        reduce="none",
    )
    kept = run[[name for name in ("loss", "accuracy", "test_accuracy") if name in run]]
    return kept.assign_attrs(title="DP-SGD of a two-layer network", source="empirical")
