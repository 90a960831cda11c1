"""Choose the contestants for a problem, and the number of paths at which each is fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.harness.contestants import Case, Contestant, Ours

US = "us"
OUR_PATHS = 4
BATCH_BYTES = 100e6  # more paths than fit into this were never faster


def _torchsde(case: Case, dtype: type, reduce: str, paths: int, fresh: bool) -> Contestant:
    from benchmarks.peers.torchsde_euler import TorchSDE

    return TorchSDE(case, dtype, reduce, paths, fresh)


def _vmap(case: Case, dtype: type, reduce: str, paths: int) -> Contestant:
    from benchmarks.peers.torch_vmap import TorchVmap

    return TorchVmap(case, dtype, reduce, paths)


def _scan(case: Case, dtype: type, reduce: str, paths: int, draws: type | None = None) -> Contestant:
    from benchmarks.peers.jax_scan import JaxScan

    return JaxScan(case, dtype, reduce, paths, draws)


def _diffrax(case: Case, dtype: type, reduce: str, paths: int, tree: bool) -> Contestant:
    from benchmarks.peers.diffrax_euler import Diffrax

    return Diffrax(case, dtype, reduce, paths, tree)


@dataclass(frozen=True)
class Peer:
    """How to build a contestant, and which packages it requires."""

    build: Callable[[Any, type, str, int], Contestant]
    needs: tuple[str, ...]
    tuned_by: str = ""  # the peer whose number of paths it uses, if it does not determine its own
    double_only: bool = False
    shares: bool = True  # whether its paths read together what they share

    @property
    def installed(self) -> bool:
        """Tell whether all required packages are installed."""
        return all(find_spec(name) for name in self.needs)


PEERS = {
    "torchsde, fresh draws": Peer(partial(_torchsde, fresh=True), ("torch", "torchsde")),
    "torchsde": Peer(partial(_torchsde, fresh=False), ("torch", "torchsde"), "torchsde, fresh draws"),
    "torch vmap(grad)": Peer(_vmap, ("torch",)),
    "JAX scan": Peer(_scan, ("jax",)),
    "JAX scan, single draws": Peer(partial(_scan, draws=np.float32), ("jax",), "JAX scan", True),
    "diffrax, unsafe path": Peer(partial(_diffrax, tree=False), ("jax", "diffrax"), "JAX scan"),
    "diffrax, tree": Peer(partial(_diffrax, tree=True), ("jax", "diffrax"), "JAX scan"),
}


def missing(peers: Mapping[str, Peer] = PEERS) -> list[str]:
    """Return the peers that are not installed."""
    return [name for name, peer in peers.items() if not peer.installed]


def lineup(
    case: Case,
    dtype: type,
    candidates: Sequence[int],
    seconds: float,
    *,
    peers: Mapping[str, Peer] = PEERS,
    ours: Callable[[Any, type, str, int], Contestant] = Ours,
    our_paths: int = OUR_PATHS,
) -> dict[str, Contestant]:
    """Return all contestants, on full data and, where smaller, on reduced data: ``"JAX scan, reduced"``.

    Parameters
    ----------
    candidates : sequence of int
        Numbers of paths to try with each peer, in increasing order.
    seconds : float
        Duration of each trial.
    peers : mapping of str to Peer
    ours : callable
        Builds our contestant.
    our_paths : int
    """
    contestants: dict[str, Contestant] = {}
    for data, reduce in (("reduced", "auto"), ("full", "none")) if case.reducible else (("full", "none"),):
        contestants[f"{US}, {data}"] = ours(case, dtype, reduce, our_paths)
        fitting = _fitting(case, dtype, reduce, candidates)
        best: dict[str, int] = {}
        for name, peer in peers.items():
            if peer.installed and not (peer.double_only and dtype is not np.float64):
                build = partial(peer.build, case, dtype, reduce)
                best[name] = best.get(peer.tuned_by, 0) or best_paths(
                    build, fitting, seconds, case.shared and peer.shares
                )
                contestants[f"{name}, {data}"] = build(best[name])
    return contestants


def best_paths(
    build: Callable[[int], Contestant], candidates: Sequence[int], seconds: float, shared: bool = False
) -> int:
    """Return the number of paths with which a peer is fastest.

    Two slower candidates end the search. So does a step so long that more paths bring no gain, unless paths
    share what they read.
    """
    if len(candidates) == 1:
        return candidates[0]
    best, fastest, slower = candidates[0], np.inf, 0
    for paths in candidates:
        contestant = build(paths)
        steps = steps_within(contestant, seconds)
        elapsed = min(contestant.advance(steps) for _ in range(2)) / steps / paths
        best, fastest, slower = (paths, elapsed, 0) if elapsed < fastest else (best, fastest, slower + 1)
        if slower == 2 or (elapsed * paths > seconds and not shared):
            break
    return best


def _fitting(case: Case, dtype: type, reduce: str, candidates: Sequence[int]) -> Sequence[int]:
    a_path = case.path_numbers(reduce) * np.dtype(dtype).itemsize
    return [paths for paths in candidates if paths * a_path <= BATCH_BYTES] or candidates[:1]


def steps_within(contestant: Contestant, seconds: float) -> int:
    """Return the number of steps that take about ``seconds``, at least 1, after a warm-up."""
    contestant.advance(1)
    steps = 1
    for share in (0.1, 1.0):
        steps = max(1, round(share * seconds * steps / max(contestant.advance(steps), 1e-6)))
    return steps


def require_same_drift(case: Case, contestants: dict[str, Contestant], tolerance: float) -> None:
    """Refuse to time a contestant that computes another drift."""
    for name, contestant in contestants.items():
        error = case.error(contestant)
        if not error < tolerance:
            raise SystemExit(f"{name} computes another drift: relative error {error:.1e} at {case}")
