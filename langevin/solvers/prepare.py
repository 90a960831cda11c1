"""From arguments to a chain."""

from __future__ import annotations

import numpy as np

from langevin.engine.chain import Chain
from langevin.engine.noise import DTYPES
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Reduction, Request
from langevin.engine.results import Results
from langevin.model.steps import Grid
from langevin.support import install, validate
from langevin.support.threads import one_blas_thread


def draws_per_step(cut: Grid, noise_dt: float | None) -> int:
    """Number of draws of noise per step."""
    draws = 1
    if noise_dt is not None:
        noise_dt = validate.positive("noise_dt", noise_dt)
        # more of them than 2^32, even infinitely many, are of no use
        draws = round(min(cut.dt / noise_dt, 2**32))
        if draws < 1 or abs(draws * noise_dt - cut.dt) > 1e-9 * cut.dt:
            raise ValueError(f"dt must be a whole multiple of noise_dt, got {cut.dt:g} and {noise_dt:g}")
    if cut.steps * draws >= 2**32:
        raise ValueError(
            f"dt must give fewer than 2^32 draws a path, got {cut.steps * draws}: take a larger dt"
        )
    return draws


def on_device(chain: Chain, name: str, threads: int) -> Chain:
    """Bring a chain to a GPU."""
    try:
        from langevin.engine.gpu.chain import DeviceChain, find
    except ImportError:
        raise ValueError(
            f"device must be 'cpu' here, got {name!r}: PyTorch is not installed; {install.command('gpu')}"
        ) from None
    return DeviceChain.of(chain, find(name), threads)


def reduced_by(request: Request, reduce: str) -> Reduction:
    """The reduction of that name, built on one thread."""
    # the coordinates have to be the same whatever the number of threads
    with one_blas_thread():
        return reduction(reduce, request)


def build_chain(
    request: Request, reduce: str, precision: str, key: tuple[int, int] = (0, 0), draws: int = 1
) -> Chain:
    """The chain of a request under a reduction."""
    validate.choice("precision", precision, DTYPES)
    return Chain.build(request, reduced_by(request, reduce), DTYPES[precision], key, draws)


def describe_divergence(chain: Chain, results: Results) -> str:
    """Report which paths diverged and when, and suggest a remedy."""
    from langevin.solvers import adaptive

    lost = results.diverged >= 0
    path = int(np.argmin(np.where(lost, results.diverged, np.iinfo(np.int64).max)))
    step = int(results.diverged[path])
    message = (
        f"{int(lost.sum())} of {lost.size} paths diverged, the first (path {path}) at step {step}, "
        f"time {step * chain.grid.dt:g}: outputs are no longer finite."
    )
    with np.errstate(all="ignore"):
        limit = adaptive.stability_limit(chain.problem, chain.weights, chain.schedule)
    if limit == 0:
        return f"{message} The start itself is beyond the range of doubles: take smaller inputs or weights"
    if chain.grid.dt > limit:
        return (
            f"{message} dt={chain.grid.dt:g} is above {limit:.2g}, where unclipped steps become unstable "
            f"at the start: take dt <= {limit / 2:.1g}"
        )
    return f"{message} Take a smaller dt than {chain.grid.dt:g}, less noise, or a clip"
