"""Test the gradient engine of each stage on a few images, before any private image is used."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from empirical.data.images import Images, normalised
from empirical.networks import passes, subsets
from empirical.networks.bodies import Classifier, scale_of
from empirical.networks.check import NotPrivateError
from empirical.recipe import Engine, Recipe, Subset
from empirical.train.gradients import cost
from empirical.train.gradients.engine import candidates, engine
from empirical.train.gradients.plain import Gradients, Loop, factors
from empirical.train.losses import Loss
from langevin.support.rng import generator

# images that accompany an extreme one
_BESIDE = 3


@dataclass(frozen=True)
class Choice:
    """A tested engine.

    Attributes
    ----------
    kind : str
    passed_over : dict of str to str
        Faster engines, and why each was rejected.
    """

    kind: Engine
    passed_over: dict[str, str] = field(default_factory=dict)


def images(task: Images, body: nn.Module) -> Tensor:
    """Random images, prepared as the task's own are for ``body``, and three extreme ones, shape (7, ...).

    The extremes are black, white, and a ramp of all intensities.
    """
    random = generator(0, "images of the trial").random((4, *task.train.shape))
    ramp = np.linspace(0, 1, random[0].size).reshape(random[:1].shape)
    pixels = np.concatenate([random, 0 * ramp, 0 * ramp + 1, ramp]).astype(np.float32)
    return torch.tensor(normalised(pixels, *scale_of(body, task)))


def choose_all(model: Classifier, recipe: Recipe, loss: Loss, x: Tensor) -> dict[str, Choice]:
    """Choose the engine of each stage of a recipe, by the stage's name, for what the stage trains.

    Parameters
    ----------
    model : Classifier
        Not changed.
    recipe : Recipe
        With clipping.
    loss : Loss
    x : Tensor, shape (n, channels, height, width)
        See `images`.

    Raises
    ------
    NotPrivateError, ValueError
        See `choose`.
    """
    found = {}
    for stage in recipe.phases:
        choice = found[stage.name] = _choose_for(model, recipe, loss, x, stage.subset)
        for kind, reason in itertools.islice(choice.passed_over.items(), 1):
            warnings.warn(
                f"engine {kind!r} does not fit this body in the stage {stage.name!r} ({reason}): "
                f"using {choice.kind!r}, which is slower",
                stacklevel=3,
            )
    return found


def _choose_for(model: Classifier, recipe: Recipe, loss: Loss, x: Tensor, subset: Subset) -> Choice:
    made = passes.copied(model)
    assert isinstance(made, Classifier)
    if subset == "lora":
        made.body = subsets.adapt(made.body, recipe.rank, 0).to(x.device)
    subsets.train_only(made, made.head, subset, [p for p in made.parameters() if p.requires_grad])
    if subset == "head":
        with torch.no_grad():
            features = made.eval().body(x).float()
        return choose(made.head, loss, "closed", features)
    masks = {}
    if subset == "sparse":
        # those of training may be of any layer: a part of each
        body = [p for p in made.body.parameters() if p.requires_grad]
        masks = {p: torch.arange(p.numel(), device=p.device).view_as(p).remainder(2).to(p) for p in body}
    return choose(made, loss, recipe.engine, x, masks=masks)


def choose(
    network: nn.Module, loss: Loss, kind: Engine, x: Tensor, *, masks: subsets.Mask | None = None
) -> Choice:
    """Choose the fastest engine whose norms and clipped sums are those of one backward pass per sample.

    Of a network whose passes are slow, the time of each engine is measured; otherwise the order of
    `candidates` is taken.

    Parameters
    ----------
    network : nn.Module
        Not changed: copies are tried, in double precision where they work in it.
    loss : Loss
        Loss over classes.
    kind : str
        "auto", or the name of the engine to test.
    x : Tensor, shape (n, ...)
        At least four inputs.
    masks : dict, optional

    Raises
    ------
    NotPrivateError
        If one input moves the clipped sum by more than the clipping norm, or the requested engine is wrong.
    ValueError
        If the requested engine does not apply to this network, or there is no gradient.

    Examples
    --------
    >>> from empirical.train.losses import CrossEntropy
    >>> tied = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh())
    >>> tied.append(tied[1])  # doctest: +ELLIPSIS
    Sequential(...
    >>> choose(tied, CrossEntropy(), "auto", torch.rand(5, 1, 2, 2)).kind
    'hooks'
    """
    with passes.unnoticed(), torch.enable_grad():
        made, own, seen = passes.precise(network, x, training=True)
        own = passes.fewer(made, own, seen)
        placed = _placed(network, masks or {})
        trial = _Trial(made, loss, own, placed, seen.eps)
        wrong: dict[str, str] = {}
        kinds = candidates(network, kind, masks)
        if seen.each > cost.SLOW:
            kinds = cost.ordered(kinds, lambda other: _engine(network, loss, other, placed), x)
        for other in kinds:
            reason = trial.failure(other)
            if reason is None:
                return Choice(other, wrong)
            if other == kind and reason.startswith("engine must not be"):
                raise NotPrivateError(reason)
            if other == kind:
                raise NotPrivateError(
                    f"engine must not be {kind!r} for this body ({reason}): use 'auto' or 'loop'"
                )
            wrong[other] = reason
    raise AssertionError("one backward pass per sample is what engines are compared with")


def _engine(network: nn.Module, loss: Loss, kind: Engine, placed: dict[int, Tensor]) -> Gradients:
    """An engine on a copy of a network."""
    network = passes.copied(network)
    return engine(network, loss, kind, masks=_masked(network, placed), clip=True)


def _masked(network: nn.Module, placed: dict[int, Tensor]) -> subsets.Mask:
    params = list(network.parameters())
    return {params[place]: mask.to(params[place]) for place, mask in placed.items()}


def _placed(network: nn.Module, masks: subsets.Mask) -> dict[int, Tensor]:
    """Masks by the places of their parameters, which are the same in a copy."""
    return {place: masks[p] for place, p in enumerate(network.parameters()) if p in masks}


class _Trial:
    """One backward pass per sample of a network, to which engines are compared."""

    def __init__(
        self, network: nn.Module, loss: Loss, x: Tensor, masks: dict[int, Tensor], eps: float
    ) -> None:
        self._network, self._loss, self._x, self._masks, self._eps = network, loss, x, masks, eps
        self._beside = min(_BESIDE, len(x) - 1)
        self._places: list[int] = []
        with torch.no_grad():
            outputs = network(x[:1]).shape[1]
        self._y = torch.arange(len(x), device=x.device) % outputs
        self._names = [name for name, p in network.named_parameters() if p.requires_grad]
        loop = Loop(network, loss, _masked(network, masks))
        self._norms = x.new_zeros(len(x))
        try:
            self._norms[0] = self._one(loop, 0)
        except RuntimeError as error:
            raise ValueError(f"body must have gradients of single images, got: {error}") from error
        # so that some are clipped and some are not
        self._clip = float(self._norms[0]) or 1.0
        #: clipped sums over the first few and over all, and the norms that they are sums of
        self._first, self._all, self._scales = ([torch.zeros_like(p) for p in loop.params] for _ in range(3))
        for i in range(len(x)):
            self._norms[i] = self._one(loop, i)
            own = loop.total(self._factors(self._norms[i : i + 1]))
            for first, all_, scale, g in zip(self._first, self._all, self._scales, own, strict=True):
                all_ += g
                scale += g.abs()
                if i < self._beside:
                    first += g

    def _one(self, loop: Loop, i: int) -> Tensor:
        return loop.norms(self._x[i : i + 1], self._y[i : i + 1])[0]

    def _factors(self, norms: Tensor) -> Tensor:
        return factors(norms, self._clip, "flat", 0.0)

    def failure(self, kind: Engine) -> str | None:
        """Return what is wrong with an engine, or None."""
        if kind == "loop":
            return None
        gradients = None
        try:
            gradients = _engine(self._network, self._loss, kind, self._masks)
            return self._failure(gradients)
        except NotPrivateError:
            raise
        except Exception as error:  # whatever a network and an engine do to each other
            where = "" if gradients is None else self._where(gradients, last=True)
            reason = str(error)
            if not reason.startswith("engine must not be"):
                reason = f"{type(error).__name__}: {reason}"
            return reason + where

    def _where(self, gradients: Gradients, last: bool = False) -> str:
        """Describe the first or last parameter with wrong norms; "" if there are no norms."""
        found = getattr(gradients, "parts", lambda: [])()
        if not any(part is not None for part in found):
            return ""
        loop = Loop(self._network, self._loss, _masked(self._network, self._masks))
        rights = []
        for i in self._places:
            self._one(loop, i)
            rights.append(loop.parts())
        wrong = [
            name
            for place, (name, part) in enumerate(zip(self._names, found, strict=True))
            if part is None or not self._close(part, torch.stack([right[place] for right in rights]))
        ]
        if not wrong:
            return ""
        name = wrong[-1 if last else 0].rpartition(".")[0]
        return f", of {type(self._network.get_submodule(name)).__name__} at {name!r}"

    def _close(self, norms: Tensor, right: Tensor) -> bool:
        if norms.shape != right.shape:
            return False
        norms = norms.to(right)
        # half of the digits, above what rounding leaves of a gradient that is zero
        allowed = self._eps**0.5 * right + self._eps**0.75 * self._norms.max()
        return bool(((norms - right).abs() <= allowed).all())

    def _failure(self, gradients: Gradients) -> str | None:
        count, beside = len(self._x), list(range(self._beside))
        sums: list[Tensor] = []
        for places, expected in (([0], None), (beside, self._first), (list(range(count)), self._all)):
            found = self._summed(gradients, places)
            if isinstance(found, str):
                return found
            reason = None if expected is None else self._off(found, expected)
            if reason is not None:
                return reason
            if places == beside:
                sums = found
        for extreme in range(self._beside, count):
            found = self._summed(gradients, [extreme, *beside])
            if isinstance(found, str):
                return found
            moved = math.hypot(*(float((a - b).norm()) for a, b in zip(found, sums, strict=True)))
            if moved > self._clip * (1 + math.sqrt(self._eps)):
                raise NotPrivateError(
                    "one image must move the clipped sum of gradients by at most the clipping norm, got "
                    f"{moved / self._clip:.3g} times that for one image next to {self._beside} others"
                )
        return None

    def _summed(self, gradients: Gradients, places: list[int]) -> list[Tensor] | str:
        """Return the clipped sum over some inputs, or what is wrong with the norms."""
        self._places = places
        norms = gradients.norms(self._x[places], self._y[places])
        assert norms is not None
        right = self._norms[places]
        if norms.shape != right.shape:
            return f"{len(norms)} norms of gradients for {len(places)} images" + self._where(gradients)
        if not self._close(norms, right):
            worst = int((norms - right).abs().argmax())
            text = f"a gradient norm is {float(norms[worst]):.9g} instead of {float(right[worst]):.9g}"
            return text + self._where(gradients)
        return gradients.total(self._factors(norms))

    def _off(self, found: list[Tensor], right: list[Tensor]) -> str | None:
        """Return the name of a parameter with a wrong clipped sum."""
        whole = math.hypot(*(float(s.norm()) for s in self._scales))
        for name, a, b, scale in zip(self._names, found, right, self._scales, strict=True):
            # as of norms
            allowed = self._eps**0.5 * float(scale.norm()) + self._eps**0.75 * whole
            error = float((a - b).norm())
            if not error <= allowed:
                return f"the sum of gradients of {name!r} is off by {error:.4g}, of {float(b.norm()):.4g}"
        return None
