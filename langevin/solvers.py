"""Clipped Langevin diffusion by Euler-Maruyama, and its zeroth-order approximation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from langevin import _engine, _install, _record, _validate, noise
from langevin._engine import Chain
from langevin._observer import Observer
from langevin._random import RNG
from langevin._record import Checkpoint, Run
from langevin._results import Results
from langevin._system import System
from langevin._validate import FloatArray
from langevin.noise import DTYPES, Precision
from langevin.observables import requested, select
from langevin.problem import GramWeights, Problem, Weights, require_compatible
from langevin.reduced import Reduction, Request, reduction
from langevin.schedule import Grid, Schedule, grid, record_times

if TYPE_CHECKING:
    import xarray as xr

_AUTOSAVE_SECONDS = 60.0
# the zeroth-order path has no distance to itself
_EXCLUDED = ("squared_distance",)


class Diverged(ArithmeticError):
    """Some path is no longer finite.

    Attributes
    ----------
    run : xarray.Dataset
        All that was computed; NaN from the divergence on.
    """

    def __init__(self, message: str, run: xr.Dataset) -> None:
        super().__init__(message)
        self.run = run


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that arrived during a run.

    Attributes
    ----------
    run : xarray.Dataset
        All that was computed; NaN elsewhere.
    checkpoint : Path or None
        Where the run goes on from.
    """

    def __init__(self, message: str, run: xr.Dataset, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.run = run
        self.checkpoint = checkpoint


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

    Parameters
    ----------
    problem : Problem
    weights : Weights
        Where every path starts; for linear nets of any width also `GramWeights`.
    schedule : Schedule
        Phases; each change falls on a step.
    dt : float
        Step, in units of diffusion time.
    paths : int
        Number of independent paths.
    rng : int, Generator, SeedSequence or None
        Source of the noise's key (SPEC 7). The same seed gives the same run to the last bit, whatever the
        number of threads and of paths, and with or without interruption, on one machine with one set of
        versions. What lies outside the span of the data is drawn at the recorded times: the distances, but
        not the loss, of a path depend on them.
    times : array_like, shape (m,), optional
        When to record; 101 equidistant times by default. Times between steps move to the nearest step,
        and the ``time`` coordinate says so: ``times=run.time`` gives another run the same ones.
    observables : sequence of str, optional
        Observables beside the default ones, see `langevin.observables.OBSERVABLES`.
    precision : {"double", "single"}
        Of the state and of the drift.
    reduce : str
        What is simulated in place of the full chain, with its law, see `langevin.reduced`: ``"span"``,
        ``"kernel"``, ``"gram"`` or ``"collapsed"``; ``"none"`` for the full chain itself; ``"auto"`` for the
        cheapest that serves the observables asked for. Those of neurons are default ones only where neurons
        are simulated. The run's record says what was taken; equal seeds give equal paths under equal ones.
    threads : int, optional
        By default as many as there are processors.
    device : str
        ``"cpu"``; or ``"cuda"``, ``"cuda:1"``: an NVIDIA GPU, for many paths of wide networks; it needs
        PyTorch and Triton. It follows the same Brownian paths, but rounds differently, and its last bits may
        depend on the number of paths. A checkpoint goes on only on a device of the same name.
    noise_dt : float, optional
        Step of the grid on which the Brownian path is drawn; ``dt`` must be a whole multiple of it.
        Runs with different ``dt`` and the same ``noise_dt``, ``rng`` and ``times`` share their Brownian
        paths.
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
        Observables over ``(path, time)``, per neuron over ``(path, time, neuron)``, each with units; the
        full record (configuration, key, versions) in the attributes.

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
    require_compatible(problem, weights)
    paths = _validate.integer("paths", paths, 1)
    threads = _engine.check_threads(threads)
    _validate.device(device)
    cut = grid(schedule, dt, times)
    draws = _draws(cut, noise_dt)
    asked = requested(problem, observables)
    noisy = any(phase.sigma > 0 for phase in schedule)
    request = Request(
        problem, weights, schedule, cut, asked, noisy, coupled=noise_dt is not None, device=device
    )
    chain = _chain(request, reduce, precision, noise.key(rng), draws)
    names = select(problem, asked, neurons=chain.reduction.neurons)
    if device != "cpu":
        # one thread talks to the device
        chain, threads = _on_device(chain, device, threads), 1
    _validate.memory(
        chain.observer.peak_bytes(
            paths, _record.per_neuron_wanted(names), threads, chain.chunk_paths(paths, threads)
        ),
        f"a run of {paths} paths, {len(cut.times)} times and width {weights.width}",
        "take fewer paths, times or threads, or fewer per-neuron observables",
    )
    chain = chain.with_reference(_engine.reference_path(chain.without_noise()))
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
            in_flight = _engine.run(
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
        with _engine.shielded():
            message = f"interrupted at {results.steps.sum() / total:.1%} of the steps"
            if saved.path is not None:
                # paths under way that a signal has lost start anew
                failure = saved.save(in_flight)
                message += f"; {failure}" if failure else f"; kept in {saved.path}"
            raise Interrupted(message, run.dataset(**about), saved.path)
    if (results.diverged >= 0).any():
        raise Diverged(_divergence(chain, results), found)
    return found


def zeroth_order(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    *,
    times: ArrayLike | None = None,
    dt: float | None = None,
    observables: Sequence[str] | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    precision: Precision = "double",
    reduce: str = "auto",
) -> xr.Dataset:
    """Solve the zeroth-order approximation ``d theta~ = b(theta~) dt``, equation (2) of [1]_.

    Parameters
    ----------
    problem, weights, schedule, times, observables, reduce
        As in `euler_maruyama`; the noise of the schedule is left out. The flow of a ReLU net may also be
        reduced by ``"blocks"``, class by class, as long as it is certain that all neurons stay in the cones
        of their classes; ``"auto"`` goes back to the full flow where it is not.
    dt : float, optional
        None: adaptive methods, see Notes. A number: explicit Euler steps, to the last bit a path with
        ``sigma = 0`` of `euler_maruyama` with the same ``dt``, ``precision`` and ``reduce``, and so with the
        diffusion's own discretisation error.
    rtol, atol : float
        Tolerances of a step of the adaptive method, per component of the state. Steps are at most 1/50 of a
        phase, so that they do not pass over the kinks of clipping.
    precision : {"double", "single"}
        Of the Euler steps; the adaptive method is always double.

    Returns
    -------
    xarray.Dataset
        Observables over ``(time,)``, per neuron over ``(time, neuron)``. Attributes say what was done:
        ``method``, ``crossings`` and ``slides`` (hyperplanes that neurons have crossed, and along which they
        have begun to slide, while these were followed), ``estimated_error`` (of the weights, relative to
        their norm) and ``estimated_loss_error`` (absolute; 0 as long as no hyperplane was met);
        ``shared_slides`` is 1 where several neurons were on hyperplanes of one clipped sample: the flow then
        is one of several solutions, by a choice that the estimated error leaves out.

    Raises
    ------
    Diverged
        If the solution is no longer finite, or takes more than 1e6 steps.

    Notes
    -----
    While the drift is smooth the method is DOP853, of order 8; after 20000 steps of it, LSODA, for stiff
    flows. ``estimated_error`` then sums the tolerances of the steps.

    The drift of a ReLU net jumps where a neuron meets the hyperplane ``w_j . x_i = 0`` of a sample. From the
    first such event, the rest of a phase of full fine-tuning is followed from hyperplane to hyperplane: the
    solution is Filippov's, the limit of Euler's steps, in which neurons cross hyperplanes or slide along
    them. The method has order 2, keeps stiff flows of up to 512 samples stable, and runs next to a second
    solution with twice the step; ``estimated_error`` is their largest distance. With the default ``rtol`` it
    is about 1e-6, and it falls in proportion to ``rtol``.

    Where solutions are not unique: on a hyperplane that repels, a neuron stays on the side on which it is,
    and one that starts exactly there is inactive, as the ReLU's derivative at 0 is 0. Where several neurons
    slide along the hyperplane of one clipped sample, they are taken to be active independently of each other.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], activation="linear", loss="square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> ode = zeroth_order(problem, weights, Schedule.lp(time=1.0), times=[0.0, 1.0])
    >>> bool(abs(ode.loss[1] - np.exp(-2.0)) < 1e-6)
    True
    """
    require_compatible(problem, weights)
    asked = requested(problem, observables, exclude=_EXCLUDED)
    if dt is None:
        request = Request(problem, weights, schedule, None, asked, noisy=False)
        wanted = record_times(schedule, times)
        rtol, atol = _validate.positive("rtol", rtol), _validate.positive("atol", atol)
        return _adaptive(request, wanted, reduce, rtol, atol)
    request = Request(problem, weights, schedule, grid(schedule, dt, times), asked, noisy=False)
    return _euler(request, reduce, precision)


def gradient_flow(problem: Problem, weights: Weights, schedule: Schedule, *, dt: float) -> Weights:
    """Where explicit Euler steps of the zeroth-order flow end: weights, in the problem's coordinates.

    Parameters
    ----------
    problem, weights, schedule
        As in `euler_maruyama`; the noise of the schedule is left out.
    dt : float
        Step, in units of diffusion time.

    Raises
    ------
    ArithmeticError
        If the flow is no longer finite at the end.
    """
    require_compatible(problem, weights)
    if isinstance(weights, GramWeights):
        raise ValueError("weights must hold single neurons, got GramWeights: take Weights")
    cut = grid(schedule, dt, [_validate.original("schedule", schedule, Schedule).duration])
    chain = _chain(Request(problem, weights, schedule, cut, noisy=False), "span", "double").without_noise()
    span = chain.reduction.span
    W, v = chain.layout.unpack(_engine.reference_path(chain)[-1])
    if not (np.isfinite(W).all() and np.isfinite(v).all()):
        raise ArithmeticError(f"the flow is no longer finite at its end: take a smaller dt than {dt:g}")
    # what lies across the span does not move
    move = W - span.coordinates(weights.W)
    return Weights(weights.W + span.embed(move), v)


# --- parts -----------------------------------------------------------------------------------


def _draws(cut: Grid, noise_dt: float | None) -> int:
    draws = 1
    if noise_dt is not None:
        noise_dt = _validate.positive("noise_dt", noise_dt)
        # more of them than 2^32, even infinitely many, are of no use
        draws = round(min(cut.dt / noise_dt, 2**32))
        if draws < 1 or abs(draws * noise_dt - cut.dt) > 1e-9 * cut.dt:
            raise ValueError(f"dt must be a whole multiple of noise_dt, got {cut.dt:g} and {noise_dt:g}")
    if cut.steps * draws >= 2**32:
        raise ValueError(
            f"dt must give fewer than 2^32 draws a path, got {cut.steps * draws}: take a larger dt"
        )
    return draws


def _on_device(chain: Chain, name: str, threads: int) -> Chain:
    try:
        from langevin import _device
    except ImportError:
        raise ValueError(
            f"device must be 'cpu' here, got {name!r}: PyTorch is not installed; {_install.command('gpu')}"
        ) from None
    return _device.DeviceChain.of(chain, _device.find(name), threads)


def _reduced(request: Request, reduce: str) -> Reduction:
    # the coordinates have to be the same whatever the number of threads
    with _engine.one_blas_thread():
        return reduction(reduce, request)


def _chain(
    request: Request, reduce: str, precision: str, key: tuple[int, int] = (0, 0), draws: int = 1
) -> Chain:
    _validate.choice("precision", precision, DTYPES)
    return Chain.build(request, _reduced(request, reduce), DTYPES[precision], key, draws)


def _one_path(observer: Observer, asked: Sequence[str], chain: Chain | None = None) -> Run:
    """Begin a run of the zeroth-order flow."""
    system = observer.system
    names = select(system.problem, asked, _EXCLUDED, neurons=system.reduction.neurons)
    _validate.memory(
        observer.peak_bytes(1, _record.per_neuron_wanted(names), threads=1, chunk=1),
        f"a path with {len(observer.times)} times and width {system.layout.width}",
        "take fewer times, or no per-neuron observables",
    )
    return Run.start(observer, names, chain=chain)


def _euler(request: Request, reduce: str, precision: str) -> xr.Dataset:
    """Solve the zeroth-order flow by explicit Euler steps."""
    chain = _chain(request, reduce, precision).without_noise()
    run = _one_path(chain.observer, request.observables, chain)
    with _engine.one_blas_thread():
        for r, theta in enumerate(_engine.follow(chain, run.results)):
            chain.observer.watch(r, 0, [theta], run.results)
    found = run.finished(solver="euler").isel(path=0).assign_attrs(method="Euler")
    if run.results.diverged[0] >= 0:
        raise Diverged(_divergence(chain, run.results), found)
    return found


def _adaptive(request: Request, times: FloatArray, reduce: str, rtol: float, atol: float) -> xr.Dataset:
    """Solve the zeroth-order flow by adaptive methods."""
    from langevin import _cones, _flow

    system = System.build(request, _reduced(request, reduce), np.float64)
    observer = Observer.of(system, request.observables, times, np.arange(len(times)))
    run, report = _one_path(observer, request.observables), _flow.Report()
    scratch, chunk, done = system.scratch(), system.start(0, 1), 0
    follow = _cones.follow if system.reduction.by_class else _flow.follow
    try:
        with _engine.one_blas_thread():
            for theta in follow(system, times, rtol, atol, report):
                chunk.thetas = theta[None]
                observer.observe(done, chunk, run.results, scratch)
                done += 1
    except _cones.LeavesCone as error:
        if reduce == "auto":
            return _adaptive(request, times, "span", rtol, atol)
        raise ValueError(
            f"reduce must apply to the run, but 'blocks' does not all along: {error}; take 'auto'"
        ) from None
    diverged = run.results.diverged
    if done < len(times):
        diverged[0] = done
    found = run.finished(solver="DOP853", rtol=rtol, atol=atol).isel(path=0).assign_attrs(report.attributes())
    if diverged[0] >= 0:
        raise Diverged(
            f"the adaptive method could not go on after record {diverged[0]} of {len(times)}: "
            "the flow takes too many steps, or leaves the range of doubles; take less time, a clip, or a dt",
            found,
        )
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


def _divergence(chain: Chain, results: Results) -> str:
    """Say which paths diverged, when, and what would help."""
    from langevin import _flow

    lost = results.diverged >= 0
    path = int(np.argmin(np.where(lost, results.diverged, np.iinfo(np.int64).max)))
    step = int(results.diverged[path])
    message = (
        f"{int(lost.sum())} of {lost.size} paths diverged, the first (path {path}) at step {step}, "
        f"time {step * chain.grid.dt:g}: outputs are no longer finite."
    )
    with np.errstate(all="ignore"):
        limit = _flow.stability_limit(chain.problem, chain.weights, chain.schedule)
    if limit == 0:
        return f"{message} The start itself is beyond the range of doubles: take smaller inputs or weights"
    if chain.grid.dt > limit:
        return (
            f"{message} dt={chain.grid.dt:g} is above {limit:.2g}, where unclipped steps become unstable "
            f"at the start: take dt <= {limit / 2:.1g}"
        )
    return f"{message} Take a smaller dt than {chain.grid.dt:g}, less noise, or a clip"
