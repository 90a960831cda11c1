"""The peers of a step with K outputs, on full batches and on Poisson batches."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.harness.contestants import Contestant
from benchmarks.harness.outputs import OutputsCase
from benchmarks.peers.lineup import Peer


def _torchsde(case: OutputsCase, dtype: type, reduce: str, paths: int, fresh: bool) -> Contestant:
    from benchmarks.peers.torchsde_heads import TorchSDEOutputs

    return TorchSDEOutputs(case, dtype, reduce, paths, fresh)


def _vmap(case: OutputsCase, dtype: type, reduce: str, paths: int) -> Contestant:
    from benchmarks.peers.vmap_outputs import TorchVmapOutputs

    return TorchVmapOutputs(case, dtype, reduce, paths)


def _jax(case: OutputsCase, dtype: type, reduce: str, paths: int, draws: type | None = None) -> Contestant:
    from benchmarks.peers.jax_outputs import JaxOutputs

    return JaxOutputs(case, dtype, reduce, paths, draws)


FULL_BATCHES = {
    "torchsde, fresh draws": Peer(partial(_torchsde, fresh=True), ("torch", "torchsde")),
    "torchsde": Peer(partial(_torchsde, fresh=False), ("torch", "torchsde"), "torchsde, fresh draws"),
}
ANY_BATCHES = {
    "torch vmap(grad)": Peer(_vmap, ("torch",), shares=False),
    "JAX": Peer(_jax, ("jax",)),
    "JAX, single draws": Peer(partial(_jax, draws=np.float32), ("jax",), "JAX", True),
}
PEERS = FULL_BATCHES | ANY_BATCHES


def peers(case: OutputsCase) -> dict[str, Peer]:
    """Return the peers that can take the batches of a case."""
    return PEERS if case.rate == 1 else ANY_BATCHES
