"""Observables of neurons on a device, of paths with K outputs or on batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from langevin.engine.kernels import types
from langevin.engine.kernels.outputs.types import WHOLLY_MISALIGNED
from langevin.model.alignment import cone_distance
from langevin.model.losses import LOSSES

if TYPE_CHECKING:
    from langevin.engine.gpu.outputs import OutputsEnsemble


class Neurons:
    """The neurons of an ensemble that is at its start, as `langevin.engine.kernels.outputs.neurons` has them.

    It holds no reference to the ensemble: both go when the latter is no longer used, and no graph is left to
    the garbage collector, which may run while another graph is recorded.

    Attributes
    ----------
    mean : Tensor, shape (paths, h)
        Pre-activation on the own class, at the last record.
    active : Tensor of bool, shape (paths, h)
        Whether a neuron is active on some sample.
    """

    def __init__(self, e: OutputsEnsemble) -> None:
        records, problem = e.chain.records, e.chain.problem
        paths, _, h = e.W.shape
        # rows of the means, and of the head, of each neuron's own class
        self._row = (records.own > 0 if problem.outputs_dim == 1 else records.own).astype(np.int64)
        self._means = torch.tensor(records.means, device=e.device).expand(paths, -1, -1)
        self._index = torch.tensor(self._row, device=e.device).expand(paths, 1, h)
        self._softmax = LOSSES[problem.loss].gauge
        self.active = torch.zeros((paths, h), dtype=torch.bool, device=e.device)
        # by the same product as later ones: what has not moved must compare as equal
        self.start = self.mean = self._own_means(e)

    def _own_means(self, e: OutputsEnsemble) -> torch.Tensor:
        return torch.bmm(self._means, e.W).gather(1, self._index).squeeze(1)

    def clear(self, e: OutputsEnsemble) -> None:
        """Begin with the samples of a record."""
        self.active.fill_(e.activation.name != "relu")

    def mark(self, A: torch.Tensor) -> None:
        """Take in the features of some rows, shape ([paths,] rows, h)."""
        self.active |= (A > 0).any(-2)

    def shares(self, e: OutputsEnsemble) -> dict[int, torch.Tensor]:
        """Shares of neurons, each of shape (paths,)."""
        self.mean = self._own_means(e)
        V, K = e.V, e.V.shape[1]
        if self._softmax:
            exceeded = V.gather(1, self._index) < V
        else:
            own = self._index > 0 if K == 1 else torch.arange(K, device=V.device)[:, None] == self._index
            exceeded = torch.where(own, -V, V) > 0
        count = exceeded.sum(1)
        found = {
            types.MISALIGNED: count > 0,
            WHOLLY_MISALIGNED: count == K - self._softmax,
            types.DISTORTED: self.mean < self.start,
            types.DEAD: ~self.active,
        }
        return {row: share.double().mean(1) for row, share in found.items()}

    def rows(self, e: OutputsEnsemble, complements: np.ndarray) -> np.ndarray:
        """Per-neuron observables, shape (paths, 3, h); ``complements`` are as in `Chunk`."""
        records, problem = e.chain.records, e.chain.problem
        mean, V = self.mean.double().cpu().numpy(), e.V.double().cpu().numpy()
        squared = e.W.double().square().sum(1).cpu().numpy()
        outside = records.complement_norms
        if records.complement_dims.size > 0:
            outside = outside + complements[:, 0]
            squared += complements[:, 1]
        norm = np.sqrt(squared + outside**2) * records.mean_norms[self._row]
        out = np.empty((len(mean), types.NEURON_ROWS, mean.shape[1]))
        out[:, types.ALIGNMENT] = np.divide(mean, norm, out=np.zeros_like(mean), where=norm > 0)
        out[:, types.PREACTIVATION] = mean
        if V.shape[1] == 1:
            out[:, types.HEAD_ALIGNMENT] = records.own * V[:, 0]
        else:
            for path, head in enumerate(V):
                out[path, types.HEAD_ALIGNMENT] = cone_distance(problem, head.T, self._row)
        return out
