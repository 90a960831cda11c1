"""Clipped Langevin diffusion by Euler-Maruyama."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from langevin.engine import chain as engine_chain
from langevin.engine import noise, pool, record
from langevin.engine.noise import Precision
from langevin.engine.record import Checkpoint, Run
from langevin.engine.reductions.request import Request
from langevin.model.observables import requested, select
from langevin.model.problem import Problem, require_compatible
from langevin.model.schedule import Schedule
from langevin.model.steps import grid
from langevin.model.weights import Weights
from langevin.support import signals, validate
from langevin.support.rng import RNG
from langevin.support.threads import check_threads

if TYPE_CHECKING:
    import xarray as xr
from langevin.solvers.errors import Diverged, Interrupted
from langevin.solvers.prepare import (
    build_chain,
    describe_divergence,
    draws_per_step,
    on_device,
)

_AUTOSAVE_SECONDS = 60.0


def euler_maruyama(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    dt: float,
    paths: int = 1,
    rng: RNG = None,
    times: ArrayLike | None = None,
    observables: Sequence[str] | None = None,
    precision: Precision = "double",
    reduce: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    noise_dt: float | None = None,
    checkpoint: str | Path | None = None,
    keep: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    r"""Simulate the clipped Langevin diffusion of a two-layer network.

    Solves ``d theta = b(theta) dt + sqrt(2) sigma dB`` with ``b = -sum_i clip_C(grad l_i)``, equation (1)
    of [1]_, by ``theta <- theta + b(theta) dt + sigma sqrt(2 dt) xi``: clipping per sample and flat over
    the *trained* parameters. Measured strong order: 1 where the drift is smooth (the noise is additive), at
    least 1/2 at the kinks of clipping and ReLU. Unclipped full fine-tuning has a cubic drift: single paths
    may escape, and moments of the chain need not converge.

    The head has one output or K, with any loss of `langevin.model.losses.LOSSES`. In a phase with a
    ``sample_rate`` ``q < 1`` a step is one of DP-SGD on a Poisson batch,
    ``theta <- theta - dt / q sum_i b_i clip_C(grad l_i) + sigma sqrt(2 dt) xi`` with ``b_i ~ Bernoulli(q)``,
    independent of each other and of the noise (K outputs and batches: new; theory for K outputs and
    mini-batches, sections 0' and 8'a; `langevin.DPSGD` converts). The sampling adds variance in proportion to
    ``dt``: only the chain shows it, and at ``dt -> 0`` the diffusion of full batches is left.

    Parameters
    ----------
    problem : Problem
    weights : Weights
        Where every path starts; for linear nets of any width also `GramWeights`.
    schedule : Schedule
        Phases; each change falls on a step. ``squared_distance`` is from the noise-free path on full batches.
    dt : float
        Step, in units of diffusion time.
    paths : int
        Number of independent paths.
    rng : int, Generator, SeedSequence or None
        Source of the key of the noise and the batches (SPEC 7). The same seed gives the same run to the last
        bit, whatever the number of threads and of paths, and with or without interruption, on one machine
        with one set of versions. What lies outside the span of the data is drawn at the recorded times: the
        distances, but not the loss, of a path depend on them.
    times : array_like, shape (m,), optional
        When to record; 101 equidistant times by default. Times between steps move to the nearest step,
        and the ``time`` coordinate says so: ``times=run.time`` gives another run the same ones.
    observables : sequence of str, optional
        Observables in addition to the defaults, see `langevin.model.observables.OBSERVABLES`.
    precision : {"double", "single"}
        Of the state and of the drift.
    reduce : str
        What is simulated instead of the full chain, with the same law, see `langevin.engine.reductions`:
        ``"span"``, ``"kernel"``, ``"gram"`` or ``"collapsed"``; ``"none"`` for the full chain itself;
        ``"auto"`` for the cheapest one that serves the observables. Observables of neurons are recorded by
        default only where neurons are simulated. K outputs and batches have all but ``"collapsed"``. The
        run's record says what was chosen; equal seeds give equal paths under equal reductions.
    threads : int, optional
        By default as many as there are processors.
    device : str
        ``"cpu"``; or ``"cuda"``, ``"cuda:1"``: an NVIDIA GPU, for many paths of wide networks; it needs
        PyTorch and Triton. It follows the same Brownian paths, but rounds differently, and its last bits may
        depend on the number of paths; batches are the same. A checkpoint goes on only on a device of the same
        name.
    noise_dt : float, optional
        Step of the grid on which the Brownian path is drawn; ``dt`` must be a whole multiple of it.
        Runs with different ``dt`` and the same ``noise_dt``, ``rng`` and ``times`` share their Brownian
        paths, but not their batches.
    checkpoint : path, optional
        File that keeps an unfinished run: written every minute and on interruption, gone on from if it
        exists, removed at the end.
    keep : bool
        Leave the checkpoint of the finished run, for `langevin.store.remove_checkpoint` once the run is kept
        elsewhere: so that it is somewhere at every moment.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    xarray.Dataset
        Observables over ``(path, time)``, per neuron over ``(path, time, neuron)``, per class over
        ``(path, time, class)``, each with units; confusions, in numbers of samples at the last record, over
        ``(path, class, predicted)``. The dimensions of classes carry their names, -1 and +1 where labels are
        these: ``run.class_accuracy.sel({"class": "cat"})``. Neurons carry their ``own_class``. The full
        record (configuration, key, versions, names of classes) is in the attributes.

    Raises
    ------
    Diverged
        If a path is no longer finite; the exception holds the run.
    Interrupted
        On KeyboardInterrupt; the exception holds what was computed.
    MemoryError
        If the results would not fit, before anything is computed.
    ValueError, TypeError
        On bad arguments.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, "Characterizing the Training Dynamics of Private Fine-tuning with
       Langevin diffusion", arXiv:2402.18905.

    Examples
    --------
    >>> from langevin import collapsed_features, orthogonally_separable
    >>> problem = orthogonally_separable(samples=20, dim=5, rng=0)
    >>> weights = collapsed_features(problem, width=8, rng=0)
    >>> schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.1, clip=1.0)
    >>> run = euler_maruyama(problem, weights, schedule, dt=0.01, paths=3, rng=0, times=[0.0, 0.3])
    >>> dict(run.sizes)
    {'path': 3, 'time': 2}
    >>> bool((run.loss[:, 1] < run.loss[:, 0]).all())
    True
    """
    require_compatible(problem, weights, schedule)
    paths = validate.integer("paths", paths, 1)
    threads = check_threads(threads)
    validate.device(device)
    cut = grid(schedule, dt, times)
    draws = draws_per_step(cut, noise_dt)
    asked = requested(problem, observables)
    noisy = any(phase.sigma > 0 for phase in schedule)
    request = Request(
        problem, weights, schedule, cut, asked, noisy, coupled=noise_dt is not None, device=device
    )
    chain = build_chain(request, reduce, precision, noise.key(rng), draws)
    names = select(problem, asked, neurons=chain.reduction.neurons)
    if device != "cpu":
        # one thread talks to the device
        chain, threads = on_device(chain, device, threads), 1
    validate.memory(
        chain.observer.peak_bytes(
            paths, record.per_neuron_wanted(names), threads, chain.chunk_paths(paths, threads)
        ),
        f"a run of {paths} paths, {len(cut.times)} times and width {weights.width}",
        "take fewer paths, times or threads, or fewer per-neuron observables",
    )
    chain = chain.with_reference(engine_chain.reference_path(chain.without_noise()))
    run = Run.start(chain.observer, names, paths, chain)
    return _simulate(Checkpoint.of(checkpoint, chain, run), threads, keep=keep, progress=progress)


def _simulate(saved: Checkpoint, threads: int, *, keep: bool, progress: bool) -> xr.Dataset:
    """Run all paths that are not yet at the end, and keep what an interruption leaves."""
    chain, run, results = saved.chain, saved.run, saved.run.results
    about = {"solver": "euler_maruyama", "noise_dt": chain.grid.dt / chain.draws}
    unfinished, in_flight, found = saved.restore(), [], None
    total = len(results.steps) * chain.grid.steps
    try:
        with _progress_bar(progress, total, int(results.steps.sum())) as advance:
            in_flight = pool.run(
                chain,
                results,
                unfinished,
                threads=threads,
                on_progress=advance,
                on_pause=saved.autosave,
                pause_seconds=_AUTOSAVE_SECONDS,
            )
        if (results.steps == chain.grid.steps).all():
            done = run.finished(**about)
            if keep:
                saved.autosave(())
            else:
                saved.remove()
            found = done
    except KeyboardInterrupt:
        pass
    if found is None:
        with signals.shielded():
            message = f"interrupted at {results.steps.sum() / total:.1%} of the steps"
            if saved.path is not None:
                # paths in progress that a signal has lost start again
                failure = saved.save(in_flight)
                message += f"; {failure}" if failure else f"; kept in {saved.path}"
            raise Interrupted(message, run.dataset(**about), saved.path)
    if (results.diverged >= 0).any():
        raise Diverged(describe_divergence(chain, results), found)
    return found


@contextmanager
def _progress_bar(show: bool, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yield a thread-safe counter of path-steps, shown on a terminal only."""
    from tqdm import tqdm

    lock = threading.Lock()
    # disable=None: hidden where stderr is no terminal; a program without a console has none
    hidden = None if show and sys.stderr is not None else True
    with tqdm(total=total, initial=done, unit="step", unit_scale=True, disable=hidden, leave=False) as bar:

        def advance(steps: int) -> None:
            with lock:
                bar.update(steps)

        yield advance
