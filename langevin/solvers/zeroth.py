"""The zeroth-order approximation of the diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from langevin.engine import chain as engine_chain
from langevin.engine import record
from langevin.engine.chain import Chain
from langevin.engine.noise import Precision
from langevin.engine.observer import Observer
from langevin.engine.record import Run
from langevin.engine.reductions.request import Request
from langevin.engine.system import System
from langevin.model.observables import requested, select
from langevin.model.problem import Problem, require_compatible
from langevin.model.schedule import Schedule
from langevin.model.steps import grid, record_times
from langevin.model.weights import GramWeights, Weights
from langevin.support import validate
from langevin.support.threads import one_blas_thread
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr
from langevin.solvers.errors import Diverged
from langevin.solvers.prepare import build_chain, describe_divergence, reduced_by

# the zeroth-order path has no distance to itself
_EXCLUDED = ("squared_distance",)


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

    It leaves out the noise of the schedule and its batches: ``b`` is the clipped drift on all samples,
    whatever the ``sample_rate``. The head has one output or K (new; theory for K outputs, section 0').

    Parameters
    ----------
    problem, weights, schedule, times, observables, reduce
        As in `euler_maruyama`. The flow of a ReLU net may also be
        reduced by ``"blocks"``, class by class, as long as it is certain that all neurons stay in the cones
        of their classes; ``"auto"`` goes back to the full flow where it is not.
    dt : float, optional
        None: adaptive methods, see Notes. A number: explicit Euler steps, to the last bit a path with
        ``sigma = 0`` and full batches of `euler_maruyama` with the same ``dt``, ``precision`` and ``reduce``,
        and so with the diffusion's own discretisation error.
    rtol, atol : float
        Tolerances of a step of the adaptive method, per component of the state. Steps are at most 1/50 of a
        phase, so that they do not pass over the kinks of clipping.
    precision : {"double", "single"}
        Of the Euler steps; the adaptive method is always double.

    Returns
    -------
    xarray.Dataset
        Observables as in `euler_maruyama`, without the dimension ``path``. Attributes say what was done:
        ``method``, ``crossings`` and ``slides`` (hyperplanes that neurons have crossed, and along which they
        have begun to slide, while these were followed), ``estimated_error`` (of the weights, relative to
        their norm) and ``estimated_loss_error`` (absolute; 0 as long as no hyperplane was met);
        ``shared_slides`` is 1 where several neurons were on hyperplanes of one clipped sample, and
        ``origin_passes`` says how often a neuron passed through the origin, which several hyperplanes share:
        the flow then may be one of several solutions, by a choice that the estimated error leaves out.

    Raises
    ------
    Diverged
        If the solution is no longer finite, or takes more than 1e6 steps.
    ValueError, TypeError
        On bad arguments, and on activations with kinks other than ``"relu"`` without ``dt``.

    Notes
    -----
    While the drift is smooth the method is DOP853, of order 8; after 20000 steps of it, LSODA, for stiff
    flows. ``estimated_error`` then sums the tolerances of the steps.

    The drift of a ReLU net jumps where a neuron meets the hyperplane ``w_j . x_i = 0`` of a sample. From the
    first such event, the rest of a phase of full fine-tuning is followed from hyperplane to hyperplane: the
    solution is Filippov's, the limit of Euler's steps, in which neurons cross hyperplanes or slide along
    them; for K outputs this is new. The method has order 2 and runs next to a second solution with twice the
    step; ``estimated_error`` is their largest distance. With the default ``rtol`` it is about 1e-6, and it
    falls in proportion to ``rtol``; where the two solutions meet hyperplanes in different orders it is larger
    (5e-4 in one of 300 random nets): take a smaller ``rtol`` then. Stiff flows stay stable, at few steps, up
    to n K = 512 outputs of n samples; beyond that, steps are as short as an explicit method needs them.

    Where solutions are not unique: on a hyperplane that repels, a neuron stays on the side on which it is,
    and one that starts there, or has come to rest there before it repelled, is inactive, as the ReLU's
    derivative at 0 is 0. Where several neurons slide along the hyperplane of one clipped sample, they are
    taken to be active independently of each other. A neuron that slides into the origin, as can happen in few
    dimensions, may leave it in several directions, and Euler's steps may choose another one.

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
    require_compatible(problem, weights, schedule)
    schedule = validate.original("schedule", schedule, Schedule).full_batches()
    asked = requested(problem, observables, exclude=_EXCLUDED)
    if dt is None:
        request = Request(problem, weights, schedule, None, asked, noisy=False)
        wanted = record_times(schedule, times)
        rtol, atol = validate.positive("rtol", rtol), validate.positive("atol", atol)
        return _adaptive(request, wanted, reduce, rtol, atol)
    request = Request(problem, weights, schedule, grid(schedule, dt, times), asked, noisy=False)
    return _euler(request, reduce, precision)


def gradient_flow(problem: Problem, weights: Weights, schedule: Schedule, *, dt: float) -> Weights:
    """Return the weights after explicit Euler steps of the zeroth-order flow, in the problem's coordinates.

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
    require_compatible(problem, weights, schedule)
    schedule = validate.original("schedule", schedule, Schedule).full_batches()
    if isinstance(weights, GramWeights):
        raise ValueError("weights must hold single neurons, got GramWeights: take Weights")
    cut = grid(schedule, dt, [schedule.duration])
    chain = build_chain(
        Request(problem, weights, schedule, cut, noisy=False), "span", "double"
    ).without_noise()
    span = chain.reduction.span
    W, v = chain.layout.unpack(engine_chain.reference_path(chain)[-1])
    if not (np.isfinite(W).all() and np.isfinite(v).all()):
        raise ArithmeticError(f"the flow is no longer finite at its end: take a smaller dt than {dt:g}")
    # what lies across the span does not move
    move = W - span.coordinates(weights.W)
    return Weights(weights.W + span.embed(move), v)


def _one_path(observer: Observer, asked: Sequence[str], chain: Chain | None = None) -> Run:
    """Begin a run of the zeroth-order flow."""
    system = observer.system
    names = select(system.problem, asked, _EXCLUDED, neurons=system.reduction.neurons)
    validate.memory(
        observer.peak_bytes(1, record.per_neuron_wanted(names), threads=1, chunk=1),
        f"a path with {len(observer.times)} times and width {system.layout.width}",
        "take fewer times, or no per-neuron observables",
    )
    return Run.start(observer, names, chain=chain)


def _euler(request: Request, reduce: str, precision: str) -> xr.Dataset:
    """Solve the zeroth-order flow by explicit Euler steps."""
    chain = build_chain(request, reduce, precision).without_noise()
    run = _one_path(chain.observer, request.observables, chain)
    with one_blas_thread():
        for r, theta in enumerate(engine_chain.follow(chain, run.results)):
            chain.observer.watch(r, 0, [theta], run.results)
    found = run.finished(solver="euler").isel(path=0).assign_attrs(method="Euler")
    if run.results.diverged[0] >= 0:
        raise Diverged(describe_divergence(chain, run.results), found)
    return found


def _adaptive(request: Request, times: FloatArray, reduce: str, rtol: float, atol: float) -> xr.Dataset:
    """Solve the zeroth-order flow by adaptive methods."""
    from langevin.solvers import adaptive, cones
    from langevin.solvers.report import Report

    system = System.build(request, reduced_by(request, reduce), np.float64)
    observer = Observer.of(system, request.observables, times, np.arange(len(times)))
    run, report = _one_path(observer, request.observables), Report()
    scratch, chunk, done = system.scratch(), system.start(0, 1), 0
    follow = cones.follow if system.reduction.by_class else adaptive.follow
    try:
        with one_blas_thread():
            for theta in follow(system, times, rtol, atol, report):
                chunk.thetas = theta[None]
                observer.observe(done, chunk, run.results, scratch)
                done += 1
    except cones.LeavesCone as error:
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
