"""Privacy of linear probing when only the last head is released (sections 2b and 2b')."""

from __future__ import annotations

import math
from typing import NamedTuple

from bounds.distance.spread import defect, step_rate
from bounds.privacy.neighbours import Neighbours, sensitivity
from bounds.support.covers import ANY, PROBING, Covers, declares
from langevin.model.losses import LOSSES
from langevin.model.schedule import CLIPPING_LOSSES, Clipping, Phase
from langevin.support import validate

COVERS = Covers(
    ("logistic", "square", "huber", "softmax", "ovr"),
    ANY,
    lp=("flat", *PROBING),
    fft=("flat",),
    late_lp=(),
    outputs=True,
)


@declares(COVERS)
def last_iterate_gdp(
    *,
    weight_decay: float,
    sigma: float,
    clip: float,
    lp_time: float,
    fft_time: float = 0.0,
    dt: float | None = None,
    smoothness: float | None = None,
    loss: str | None = None,
    outputs_dim: int = 1,
    clipping: Clipping = "flat",
    feature_norm: float | None = None,
    samples: int | None = None,
    sample_rate: float = 1.0,
    neighbours: Neighbours = "add-remove",
) -> float:
    r"""``mu`` of linear probing with weight decay when only the last head is released.

    New here (2b), re-derived as the continuous limit of [2]_. For the head's drift ``-sum_i psi_i(A_i . v)
    A_i - lambda v`` (clipped gradients of convex losses, the decay outside of clipping)

    - diffusion: ``mu^2 = Delta^2 tanh(lambda T / 2) / (lambda sigma^2)``, attained: time ``T`` counts as
      ``(2 / lambda) tanh(lambda T / 2) <= min(T, 2 / lambda)``;
    - chain of ``N`` steps ``dt <= 2 / (lambda + M)``, ``c = 1 - lambda dt``: ``mu^2 = Delta^2 dt (1 - c^N)
      (1 + c) / (2 sigma^2 (1 + c^N)(1 - c))``;
    - full fine-tuning afterwards, path released: ``mu^2`` grows by ``Delta^2 T_ft / (2 sigma^2)``.

    New (2b'), K outputs. The same for the square loss, for softmax with margin clipping or two outputs, for
    one-vs-rest with column clipping, and where clipping cannot act. Otherwise flat clipping of softmax and
    one-vs-rest is not monotone, but nearly so:

    - diffusion: ``lambda' = lambda - Lambda > 0`` replaces ``lambda``, where ``Lambda = lambda_K C a n``,
      ``lambda_K`` .01423 for softmax and .110652 for one-vs-rest;
    - chain: ``c = (1 - lambda dt) sqrt(1 + 2 h Lambda_h)``, which must be below 1, with ``h = dt / (1 -
      lambda dt)``, ``dt < 2 / (lambda + M)``, ``e = h (M - lambda) / 2`` and ``Lambda_h = C a n`` times the
      smaller of ``lambda_K + e`` and ``lambda_K / (1 - e)``, there 1/4 for one-vs-rest.

    Assumptions
        Features that do not depend on the private data; full batches, since the proof needs a sample to be in
        every step; ``weight_decay > 0`` (without it, and in full fine-tuning, releasing only the end gains
        nothing: use `gdp`). ``M`` and ``Lambda`` must hold for *all* data sets that are allowed: a value
        read from the training data gives no guarantee, so public bounds are asked for.

    Parameters
    ----------
    weight_decay : float
        ``lambda``, per unit time.
    sigma, clip : float
        Noise and clipping threshold of both phases.
    lp_time, fft_time : float
        Lengths of linear probing, and of full fine-tuning after it.
    dt : float, optional
        Step of the Euler-Maruyama chain; None: the diffusion.
    smoothness : float, optional
        ``M = lambda + s lambda_max(A^T A)`` over all data sets that are allowed, ``s`` 1 for the square loss,
        1/4 for the logistic loss and one-vs-rest, 1/2 for softmax. Needed with ``dt``; by default ``lambda +
        s n a^2``, from ``loss``, ``samples`` and ``feature_norm``.
    loss : str, optional
        Needed with K outputs, and for that default. None: any convex loss of one output.
    outputs_dim : int
        ``K``.
    clipping : {"flat", "margin", "column"}
        Of linear probing; full fine-tuning clips flat.
    feature_norm : float, optional
        ``a``: public bound of ``||A_i||``, which holds for all samples, by normalisation for instance.
    samples : int, optional
        ``n``: public bound of the number of samples of all data sets that are allowed.
    sample_rate : float
        Must be 1.
    neighbours : {"add-remove", "replace"}

    Raises
    ------
    ValueError
        Where the statement does not hold: no weight decay, or less than ``Lambda``, a step that is too long,
        no clipping, one that is not covered, or Poisson batches.

    References
    ----------
    .. [2] Bok, Su, Altschuler, "Shifted interpolation for differential privacy", arXiv:2403.00278.

    Examples
    --------
    >>> from bounds import gdp
    >>> from langevin import Schedule
    >>> settings = dict(sigma=5.0, clip=1.0, lp_time=100.0)
    >>> round(last_iterate_gdp(weight_decay=1.0, **settings), 3)
    0.2
    >>> round(gdp(Schedule.lp(time=100.0, sigma=5.0, clip=1.0)), 3)
    1.414

    Ten classes, a thousand samples with features of norm 1; margin clipping needs no more than one output:

    >>> public = dict(loss="softmax", outputs_dim=10, feature_norm=1.0, samples=1000, dt=1e-4)
    >>> round(last_iterate_gdp(weight_decay=20.0, clipping="margin", **public, **settings), 4)
    0.0447
    >>> round(last_iterate_gdp(weight_decay=20.0, **public, **settings), 4)
    0.0859
    """
    decay = validate.positive("weight_decay", weight_decay)
    sigma, lp_time = validate.positive("sigma", sigma), validate.positive("lp_time", lp_time)
    fft_time = validate.non_negative("fft_time", fft_time)
    phase = Phase("lp", lp_time, sigma, clip, clipping=clipping, sample_rate=sample_rate)
    gap = sensitivity(phase, neighbours)
    public = _Public(loss, validate.integer("outputs_dim", outputs_dim, 1), feature_norm, samples)
    expansion = _expansion(phase, public)
    if expansion >= decay:
        raise ValueError(
            f"weight_decay must exceed Lambda = {expansion:g}, at which flat clipping may drive two heads "
            f"apart, got {decay:g}: take {_others(public)}a smaller clip or feature_norm, or gdp, "
            "which is of the whole path"
        )
    if dt is None:
        time = math.tanh((decay - expansion) * lp_time / 2) / (decay - expansion)
    else:
        dt = validate.positive("dt", dt)
        contraction = _contraction(decay, expansion, _smoothness(smoothness, decay, public), dt, loss)
        # the limit of short steps, which differ by their product with the decay
        if contraction < 1e-12:
            time = math.tanh((decay - expansion) * lp_time / 2) / (decay - expansion)
        else:
            steps = round(min(lp_time / dt, 2**63))
            time = dt / 2 * math.tanh(contraction * steps / 2) / math.tanh(contraction / 2)
    return gap / sigma * math.sqrt(time + fft_time / 2)


class _Public(NamedTuple):
    """What is known of all data sets that are allowed."""

    loss: str | None
    outputs: int
    feature_norm: float | None
    samples: int | None

    def sizes(self, purpose: str) -> tuple[float, int]:
        """``a`` and ``n``, without which there is no answer."""
        if self.feature_norm is None or self.samples is None:
            raise ValueError(
                f"feature_norm and samples must be given {purpose}, got {self.feature_norm} and "
                f"{self.samples}: give bounds that hold for all data sets that are allowed"
            )
        norm = validate.positive("feature_norm", self.feature_norm)
        return norm, validate.integer("samples", self.samples, 1)

    @property
    def clippings(self) -> list[str]:
        """Clipping under which it is known how fast two heads come together."""
        if self.loss is None:
            return ["flat"]
        own = [name for name in COVERS.lp if CLIPPING_LOSSES.get(name, self.loss) == self.loss]
        return [name for name in own if defect(self.loss, self.outputs, name) is not None]


def _others(public: _Public) -> str:
    """The remedy of another clipping, if there is one."""
    return "".join(f"clipping={name!r}, " for name in public.clippings if name != "flat")


def _expansion(phase: Phase, public: _Public) -> float:
    """``Lambda``, 0 if the drift is monotone; refuse what is not covered."""
    loss, outputs, kind = public.loss, public.outputs, phase.clipping
    if loss is None and outputs > 1:
        known = ", ".join(map(repr, COVERS.losses))
        raise ValueError(f"loss must be given with outputs_dim={outputs}, got None: it must be among {known}")
    if loss is not None:
        validate.choice("loss", loss, COVERS.losses)
        classes = LOSSES[loss].classes
        if classes and outputs == 1:
            raise ValueError(
                f"outputs_dim must be at least 2 with loss={loss!r}, got 1: give that of its classes"
            )
        if not public.clippings or (LOSSES[loss].signs and outputs > 1):
            raise ValueError(
                f"outputs_dim must be 1 with loss={loss!r}, got {outputs}: K outputs are not covered"
            )
    if kind not in public.clippings:
        covered = " or ".join(map(repr, public.clippings))
        raise ValueError(
            f"clipping must be {covered} with outputs_dim={outputs} and loss={loss!r}, got {kind!r}: of "
            "others it is not known how fast two heads come together"
        )
    share = 0.0 if loss is None else defect(loss, outputs, kind)
    if not share or loss is None or phase.clip is None:
        return 0.0
    norm, samples = public.sizes(f"with flat clipping of outputs_dim={outputs} and loss={loss!r}")
    steepest = LOSSES[loss].steepest(outputs)
    # clipping cannot act
    if steepest is not None and phase.clip >= steepest * norm:
        return 0.0
    return share * phase.clip * norm * samples


def _smoothness(given: float | None, decay: float, public: _Public) -> float:
    """``M``, given or from what is public."""
    if given is None:
        if public.loss is None:
            raise ValueError(
                "smoothness must be given with dt, got None: the chain needs dt <= 2/(lambda + M); or give "
                "loss, feature_norm and samples"
            )
        norm, samples = public.sizes("with dt, or smoothness,")
        return decay + LOSSES[public.loss].smoothness * samples * norm**2
    smoothness = validate.positive("smoothness", given)
    if smoothness < decay:
        raise ValueError(f"smoothness must be at least weight_decay={decay:g}, got {smoothness:g}")
    return smoothness


def _contraction(decay: float, expansion: float, smoothness: float, dt: float, loss: str | None) -> float:
    """``-log c``: a step brings two heads together by the factor ``c``; refuse one that is too long."""
    longest = 2 / (decay + smoothness)
    if dt > longest or (expansion and dt == longest):
        raise ValueError(f"dt must be at most 2/(lambda + M) = {longest:g}, got {dt:g}: take a smaller one")
    kept = 1 - decay * dt
    found = -math.log1p(-decay * dt) if kept > 0 else math.inf
    if expansion and loss is not None:
        step = dt / kept
        found -= math.log1p(step * step_rate(expansion, step * (smoothness - decay), loss)) / 2
    if found <= 0:
        raise ValueError(
            f"dt must be so small that a step brings two heads together, got {dt:g}, with which it may drive "
            f"them apart by the factor {math.exp(-found):.6g}: take a smaller one"
        )
    return found
