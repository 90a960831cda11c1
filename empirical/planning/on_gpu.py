"""Simulated runs on a GPU: those of all splits and draws at once, by torch, in single precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from empirical.planning.comparison import Outcomes

if TYPE_CHECKING:
    import torch

    from empirical.planning.stand_in import Settings, Split, StandIn

# numbers that are in memory at once, about
_NUMBERS = 2**28


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
        data = _Data(net, device)
        rows = min(len(net.X), int(how.batch + 6 * how.batch**0.5 + 8))
        a_draw = len(splits) * (2 * rows * len(net.W) + 2 * net.W.size) + net.W.size
        together = max(1, _NUMBERS // a_draw)
        parts = [
            _Runs(data, how, splits, draws[first : first + together]).ends()
            for first in range(0, len(draws), together)
        ]
    return Outcomes(*np.concatenate(parts, 2))


class _Data:
    """A net on a device."""

    def __init__(self, net: StandIn, device: str) -> None:
        import torch

        self.net, self.device = net, device
        self.X, self.X_test, self.W = (self.numbers(part) for part in (net.X, net.X_test, net.W))
        self.y, self.y_test = (torch.tensor(part, device=device) for part in (net.labels, net.labels_test))

    def numbers(self, values: np.ndarray) -> torch.Tensor:
        """An array in single precision."""
        import torch

        return torch.tensor(np.asarray(values, np.float32), device=self.device)

    def phi(self, z: torch.Tensor) -> torch.Tensor:
        """The activation."""
        return z.clamp(min=0) if self.net.activation == "relu" else z

    def residuals(self, f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Derivative of the loss in the outputs (..., rows, outputs), for labels (..., rows)."""
        import torch

        if self.net.classes == 2:
            return torch.sigmoid(f) - y[..., None]
        return torch.softmax(f, -1) - torch.nn.functional.one_hot(y, self.net.classes)

    def ends(self, W: torch.Tensor, v: torch.Tensor) -> tuple[float, float]:
        """Held-out accuracy and mean training loss of one network."""
        import torch

        f, held = (self.phi(X @ W.T) @ v.T for X in (self.X, self.X_test))
        if self.net.classes == 2:
            loss = torch.nn.functional.softplus(-(2 * self.y - 1) * f[:, 0]).mean()
            said = (held[:, 0] > 0).long()
        else:
            loss = torch.nn.functional.cross_entropy(f, self.y)
            said = held.argmax(1)
        if not torch.isfinite(loss) or not torch.isfinite(held).all():
            return 0.0, np.inf
        return float((said == self.y_test).float().mean()), float(loss)


class _Runs:
    """Runs of some draws, over (splits, draws)."""

    def __init__(self, data: _Data, how: Settings, splits: Sequence[Split], draws: Sequence[Any]) -> None:
        import torch

        self.data, self.how = data, how
        heads, self.sources = [], []
        for seed in draws:
            of_head, of_rest = (
                np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i)) for i in range(2)
            )
            heads.append(np.atleast_2d(data.net.head(how, np.random.default_rng(of_head))))
            source = torch.Generator(data.device)
            source.manual_seed(int(of_rest.generate_state(1, np.uint64)[0] >> 1))
            self.sources.append(source)
        shape = len(splits), len(draws), 1, 1
        self.v = data.numbers(np.array(heads)).expand(*shape[:2], -1, -1).clone()
        self.W = data.W.expand(*shape[:2], -1, -1).clone()
        self.lp_steps = torch.tensor([split.lp_steps for split in splits], device=data.device)
        self.rates = [
            data.numbers(np.array([getattr(split, name) for split in splits])) for name in ("lp_lr", "lr")
        ]

    def ends(self) -> np.ndarray:
        """Accuracy and loss at the end, shape (2, splits, draws)."""
        for step in range(self.how.steps):
            self._step((step >= self.lp_steps)[:, None, None, None])
        found = [
            [self.data.ends(W, v) for W, v in zip(*row, strict=True)]
            for row in zip(self.W, self.v, strict=True)
        ]
        return np.array(found).transpose(2, 0, 1)

    def _step(self, full: torch.Tensor) -> None:
        """One step of DP-SGD; ``full`` tells which splits fine-tune all."""
        import torch

        data, how = self.data, self.how
        samples = len(data.X)
        rows, weights = self._batches()
        X = data.X[rows]
        z = X @ self.W.transpose(-1, -2)
        features = data.phi(z)
        r = data.residuals(features @ self.v.transpose(-1, -2), data.y[rows])
        # of the pre-activations, where the layer trains
        b = (r @ self.v) * full
        if data.net.activation == "relu":
            b = b * (z > 0)
        squares = (r**2).sum(-1) * (features**2).sum(-1) + (b**2).sum(-1) * (X**2).sum(-1)
        factors = weights * (how.clip / squares.sqrt().clamp(min=how.clip))
        r, b = r * factors[..., None], b * factors[..., None]
        rate = torch.where(full, self.rates[1][:, None, None, None], self.rates[0][:, None, None, None])
        scale, size = 1 / min(samples, how.batch), how.noise_multiplier * how.clip / how.batch
        noise_v, noise_W = (self._normal(values.shape[2:]) for values in (self.v, self.W))
        self.v -= rate * (scale * r.transpose(-1, -2) @ features + size * noise_v)
        self.W -= rate * full * (scale * b.transpose(-1, -2) @ X + size * noise_W)

    def _batches(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of each draw's Poisson batch, and 1 for each; with 0 where another draw has more."""
        import torch

        samples = len(self.data.X)
        rate = self.how.batch / samples
        drawn = torch.stack([torch.rand(samples, generator=s, device=self.data.device) for s in self.sources])
        taken = (drawn < rate).float()
        weights, rows = taken.topk(max(1, int(taken.sum(1).max())), 1)
        return rows, weights

    def _normal(self, shape: Any) -> torch.Tensor:
        """Standard normal numbers of each draw."""
        import torch

        return torch.stack([torch.randn(shape, generator=s, device=self.data.device) for s in self.sources])
