"""Simulated runs on a GPU: those of all splits and draws at once, by torch, in single precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from empirical.planning.comparison import Outcomes

if TYPE_CHECKING:
    import torch

    from empirical.planning.stand_in import Settings, Split, StandIn

# numbers that are in memory at once, about
_NUMBERS = 2**28
# steps whose random numbers are drawn at once: fixed, so that a draw does not depend on the others
_STEPS = 16
# of a draw's random numbers
_BATCHES, _HEAD, _LAYER = range(3)
# nets by device, which a search asks for again and again: their memory is free once they are gone
_known: WeakKeyDictionary[StandIn, dict[str, _Data]] = WeakKeyDictionary()


def run_on(
    device: str,
    net: StandIn,
    how: Settings,
    splits: Sequence[Split],
    draws: Sequence[np.random.SeedSequence],
) -> Outcomes:
    """Probe, then fine-tune, for each split and draw, as `StandIn.run` does, with other random numbers.

    A draw has the same head, batches and noise in all splits and whatever the other draws.

    Parameters
    ----------
    device : str
        As torch calls it.
    net, how, splits, draws
        As there.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device must be 'cpu', as torch finds no GPU, got {device!r}")
    with torch.no_grad(), np.errstate(over="ignore"):
        data = _data(net, device)
        together = max(1, _NUMBERS // data.numbers_a_draw(how, len(splits)))
        parts = [
            _Runs(net, data, how, draws[first : first + together]).ends(splits)
            for first in range(0, len(draws), together)
        ]
    return Outcomes(*np.concatenate(parts, 2))


def _data(net: StandIn, device: str) -> _Data:
    """A net on a device."""
    by_device = _known.setdefault(net, {})
    if device not in by_device:
        by_device[device] = _Data(net, device)
    return by_device[device]


class _Data:
    """A net on a device; it holds no reference to the net, which keeps it."""

    def __init__(self, net: StandIn, device: str) -> None:
        import torch

        self.device, self.classes, self.activation = device, net.classes, net.activation
        self.X, self.X_test, self.W = (self.numbers(part) for part in (net.X, net.X_test, net.W))
        self.y, self.y_test = (torch.tensor(part, device=device) for part in (net.labels, net.labels_test))
        # of the outputs: one for two classes
        self.Y = torch.eye(net.classes, device=device)[self.y, -1 if net.classes == 2 else 0 :]
        self.norms = self.X.norm(dim=1)
        # which probing does not change
        self.features = self.phi(self.X @ self.W.T)
        self.feature_norms = self.features.norm(dim=1)

    def numbers(self, values: np.ndarray) -> torch.Tensor:
        """An array in single precision."""
        import torch

        return torch.tensor(np.asarray(values, np.float32), device=self.device)

    def numbers_a_draw(self, how: Settings, splits: int) -> int:
        """How many numbers a draw of so many splits has in memory, about."""
        samples, (width, inputs) = len(self.X), self.W.shape
        batch = how.sample_rate(samples) * samples
        rows = min(samples, int(batch + 6 * batch**0.5 + 8))
        a_step = width * (inputs + self.Y.shape[1])
        ends = 2 * max(samples, len(self.X_test)) * width
        return splits * (3 * rows * width + 2 * a_step) + _STEPS * (a_step + 2 * samples) + ends

    def phi(self, z: torch.Tensor) -> torch.Tensor:
        """The activation, in place."""
        return z.relu_() if self.activation == "relu" else z

    def residuals(self, f: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Derivative of the loss in the outputs (..., rows, outputs)."""
        return (f.sigmoid() if self.classes == 2 else f.softmax(-1)) - targets

    def ends(self, W: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Held-out accuracy and mean training loss of networks (draws, ...), shape (2, draws)."""
        import torch

        f, held = (self.phi(X @ W.mT) @ v.mT for X in (self.X, self.X_test))
        if self.classes == 2:
            loss = torch.nn.functional.softplus((1 - 2 * self.y) * f[..., 0]).mean(1)
            said = (held[..., 0] > 0).long()
        else:
            loss = -f.log_softmax(-1)[:, torch.arange(len(self.y)), self.y].mean(1)
            said = held.argmax(-1)
        lost = ~(loss.isfinite() & held.isfinite().all(-1).all(-1))
        accuracy = (said == self.y_test).float().mean(1)
        return torch.stack([accuracy.masked_fill(lost, 0.0), loss.masked_fill(lost, np.inf)])


class _Step(NamedTuple):
    """What is random in a step, by draw."""

    rows: torch.Tensor  # (draws, b): of the Poisson batch
    weights: torch.Tensor  # (draws, b): 1, or 0 where another batch has more rows
    head: torch.Tensor  # (draws, outputs, h): standard normal, as are those of the layer
    layer: torch.Tensor | None  # (draws, h, k)


class _Runs:
    """Runs of some draws; arrays are over (splits, draws)."""

    def __init__(
        self, net: StandIn, data: _Data, how: Settings, draws: Sequence[np.random.SeedSequence]
    ) -> None:
        self.data, self.how, self.draws = data, how, draws
        heads = [np.atleast_2d(net.head(how, np.random.default_rng(_child(seed, 0)))) for seed in draws]
        self.heads = data.numbers(np.array(heads))
        self.rate = how.sample_rate(len(data.X))
        self.size = how.noise_multiplier * how.clip / how.batch

    def ends(self, splits: Sequence[Split]) -> np.ndarray:
        """Accuracy and loss at the end, shape (2, splits, draws)."""
        import torch

        data, steps = self.data, self.how.steps
        probed = self._probed(splits)
        found = torch.empty((len(splits), 2, len(self.draws)), device=data.device)
        for lp_steps in {split.lp_steps for split in splits}:
            alike = [i for i, split in enumerate(splits) if split.lp_steps == lp_steps]
            v = torch.stack([probed[i] for i in alike])
            W = data.W.expand(*v.shape[:2], -1, -1).clone()
            rates = data.numbers(np.array([splits[i].lr for i in alike]))[:, None, None, None]
            for step in self._steps(lp_steps, steps, layer=True):
                self._fine_tune(W, v, rates, step)
            for i, *network in zip(alike, W, v, strict=True):
                found[i] = data.ends(*network)
        return found.transpose(0, 1).cpu().numpy()

    def _probed(self, splits: Sequence[Split]) -> list[torch.Tensor]:
        """Heads of each split at the end of its probing, which those with one rate have in common."""
        places = {rate: i for i, rate in enumerate(dict.fromkeys(split.lp_lr for split in splits))}
        rates = self.data.numbers(np.array(list(places)))[:, None, None, None]
        v = self.heads.expand(len(places), -1, -1, -1).clone()
        wanted = {split.lp_steps for split in splits}
        known = {}
        for taken, step in enumerate(chain([None], self._steps(0, max(wanted), layer=False))):
            if step is not None:
                self._probe(v, rates, step)
            if taken in wanted:
                known[taken] = v.clone()
        return [known[split.lp_steps][places[split.lp_lr]] for split in splits]

    def _probe(self, v: torch.Tensor, rates: torch.Tensor, step: _Step) -> None:
        """One step of DP-SGD on the head."""
        data = self.data
        features = data.features[step.rows]
        r = data.residuals(features @ v.mT, data.Y[step.rows])
        r *= self._factors(r.norm(dim=-1) * data.feature_norms[step.rows], step.weights)
        v -= rates * (r.mT @ features + self.size * step.head)

    def _fine_tune(self, W: torch.Tensor, v: torch.Tensor, rates: torch.Tensor, step: _Step) -> None:
        """One step of DP-SGD on both layers."""
        import torch

        assert step.layer is not None
        data, X = self.data, self.data.X[step.rows]
        features = data.phi(X @ W.mT)
        r = data.residuals(features @ v.mT, data.Y[step.rows])
        # of the pre-activations
        b = r @ v
        if data.activation == "relu":
            b.masked_fill_(features <= 0, 0.0)
        of_head = r.norm(dim=-1) * features.norm(dim=-1)
        factors = self._factors(torch.hypot(of_head, b.norm(dim=-1) * data.norms[step.rows]), step.weights)
        r *= factors
        v -= rates * (r.mT @ features + self.size * step.head)
        W -= rates * (b.mT @ (factors * X) + self.size * step.layer)

    def _factors(self, norms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What gradients of samples are multiplied by: clip factors over the expected batch."""
        scale = 1 / (self.rate * len(self.data.X))
        return (scale * weights * (self.how.clip / norms.clamp(min=self.how.clip)))[..., None]

    def _steps(self, first: int, stop: int, *, layer: bool) -> Iterator[_Step]:
        """What is random in the steps from ``first`` to ``stop``."""
        if first == stop:
            return
        data, (outputs, width) = self.data, self.heads.shape[1:]
        for start in range(first // _STEPS * _STEPS, stop, _STEPS):
            taken = (self._drawn(start, _BATCHES, len(data.X)) < self.rate).float()
            weights, rows = taken.topk(max(1, int(taken.sum(-1).max())))
            head = self._drawn(start, _HEAD, outputs, width)
            of_layer = self._drawn(start, _LAYER, *data.W.shape) if layer else None
            for i in range(max(first - start, 0), min(stop - start, _STEPS)):
                noise = None if of_layer is None else of_layer[:, i]
                yield _Step(rows[:, i], weights[:, i], head[:, i], noise)

    def _drawn(self, start: int, kind: int, *shape: int) -> torch.Tensor:
        """Random numbers of some steps, (draws, steps, ...): uniform for batches, otherwise normal."""
        import torch

        found = torch.empty((len(self.draws), _STEPS, *shape), device=self.data.device)
        for own, seed in zip(found, self.draws, strict=True):
            source = torch.Generator(self.data.device)
            source.manual_seed(int(_child(seed, 1, start, kind).generate_state(1, np.uint64)[0] >> 1))
            own.uniform_(generator=source) if kind == _BATCHES else own.normal_(generator=source)
        return found


def _child(seed: np.random.SeedSequence, *key: int) -> np.random.SeedSequence:
    """A source of randomness of a draw."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *key))
