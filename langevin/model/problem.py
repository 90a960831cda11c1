"""Data, network and loss of what is learnt (`Problem`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES
from langevin.model.schedule import CLIPPING_LOSSES, Schedule
from langevin.model.targets import read_targets
from langevin.model.weights import GramWeights, Method, Weights
from langevin.support import html, validate
from langevin.support.validate import FloatArray

# names in the tables of `langevin.model`
Activation = str
Loss = str

# classes that a notebook shows; the others are left out
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, activation and loss of a two-layer network ``f(x) = sum_j v_j phi(w_j . x)``.

    The head has one output, or K: then ``v_j`` is a row of K numbers. The training loss is the *sum* of the
    per-sample losses, as in [1]_; with K real targets the loss of a sample is the sum over its outputs.
    Solvers and bounds refuse subclasses that override a method or property, of which they have their own
    copies.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Inputs.
    y : array_like, shape (n,) or (n, K)
        With the logistic loss labels -1 and +1. With the square and Huber losses any real targets, one or K
        per sample; one target is given in shape (n,). With ``"softmax"`` and ``"ovr"`` the classes: either
        whole numbers, which are class numbers from 0 to K - 1, or names (text or booleans), which are
        numbered in the order of ``classes``.
    activation : str
        ``phi``, a name in `langevin.model.activations.ACTIVATIONS`: ``"relu"`` (its derivative at 0 is 0),
        ``"linear"``, ``"gelu"`` (exact, ``z`` times the normal distribution function) or ``"tanh"``.
    loss : str
        A name in `langevin.model.losses.LOSSES`: ``"logistic"`` is ``log(1 + exp(-y f))``, ``"square"``
        ``(f - y)^2 / 2``, ``"huber"`` the same up to ``|f - y| = 1``, and ``|f - y| - 1/2`` beyond. With one
        output per class, ``"softmax"`` is ``log(sum_k exp(f_k)) - f_y``, and ``"ovr"`` (one-vs-rest) the sum
        of the logistic losses of all outputs, where the label of output ``k`` is +1 in class ``k`` and
        otherwise -1.
    X_test, y_test : array_like, optional
        Held-out points, shapes (m, d) and as ``y``; used by test observables only. Each of their classes must
        be one of ``y``; not all of these need occur.
    classes : sequence, optional
        Names of the K classes of ``"softmax"`` or ``"ovr"``, in the order of their numbers. By default the
        names in ``y``, sorted, or "0" to "K - 1" if ``y`` holds numbers.

    Attributes
    ----------
    y : ndarray
        Targets; class numbers, as int64, with ``"softmax"`` and ``"ovr"``.
    class_names : tuple of str
        Names of the classes of ``"softmax"`` and ``"ovr"``; empty with other losses.
    classification : bool
        Whether all labels are -1 or +1, or classes of ``"softmax"`` or ``"ovr"``.

    Raises
    ------
    ValueError, TypeError
        On shapes that do not fit, values that are missing, masked, not finite or no numbers, labels that
        are not -1, +1, or classes that are fewer than two, have no sample in ``y``, or occur in ``y_test``
        alone.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, "Characterizing the Training Dynamics of Private Fine-tuning with
       Langevin diffusion", arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> problem.samples, problem.dim, problem.classification
    (2, 2, True)
    >>> problem = Problem(np.eye(3), ["eel", "cat", "dog"], loss="softmax")
    >>> problem.y, problem.class_names, problem.outputs_dim
    (array([2, 0, 1]), ('cat', 'dog', 'eel'), 3)
    """

    X: FloatArray
    y: NDArray[Any]
    activation: Activation = "relu"
    loss: Loss = "logistic"
    X_test: FloatArray | None = None
    y_test: NDArray[Any] | None = None
    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        activation: Activation = "relu",
        loss: Loss = "logistic",
        X_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        *,
        classes: Sequence[Any] | None = None,
    ) -> None:
        validate.choice("activation", activation, ACTIVATIONS)
        validate.choice("loss", loss, LOSSES)
        X = validate.array("X", X, 2)
        if (X_test is None) != (y_test is None):
            raise ValueError("X_test and y_test must be given together: one of them is None")
        targets = read_targets(LOSSES[loss], y, y_test, classes)
        validate.same_length("X", X, "y", targets.y)
        if X_test is not None and targets.y_test is not None:
            X_test = validate.array("X_test", X_test, 2)
            validate.same_length("X_test", X_test, "y_test", targets.y_test)
            if X_test.shape[1] != X.shape[1]:
                raise ValueError(
                    f"X_test must have as many columns as X, got {X_test.shape[1]} and {X.shape[1]}"
                )
        fields = dict(X=X, activation=activation, loss=loss, X_test=X_test) | targets._asdict()
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Describe the problem in a line.

        Examples
        --------
        >>> Problem(np.eye(3), ["eel", "cat", "dog"], loss="softmax")
        Problem(3 samples in 3 dimensions, relu, softmax loss, K = 3 outputs)
        """
        outputs = f", K = {self.outputs_dim} outputs" if self.outputs_dim > 1 else ""
        return (
            f"Problem({self.samples} samples in {self.dim} dimensions, {self.activation}, "
            f"{self.loss} loss{outputs})"
        )

    def _repr_html_(self) -> str:
        targets: dict[str, object] = {"targets": f"real, {self.outputs_dim} per sample"}
        if self.labels:
            counts = (f"{name}: {int((self.y == label).sum())}" for name, label in self.labels.items())
            shown = itertools.islice(counts, _SHOWN)
            more = ", ..." if len(self.labels) > _SHOWN else ""
            targets = {"samples by class": f"{', '.join(shown)}{more}"}
        held_out = 0 if self.X_test is None else len(self.X_test)
        rows = {"samples": self.samples, "dimensions": self.dim, **targets, "held-out samples": held_out}
        return html.table("Problem", rows | {"activation": self.activation, "loss": self.loss})

    @property
    def samples(self) -> int:
        """Number of training samples ``n``."""
        return self.X.shape[0]

    @property
    def dim(self) -> int:
        """Input dimension ``d``."""
        return self.X.shape[1]

    @property
    def outputs_dim(self) -> int:
        """Number of outputs ``K``; 1 for a scalar head."""
        return len(self.class_names) or (1 if self.y.ndim == 1 else self.y.shape[1])

    @cached_property
    def classification(self) -> bool:
        return bool(self.class_names) or (self.y.ndim == 1 and bool((np.abs(self.y) == 1.0).all()))

    @property
    def labels(self) -> dict[str, float]:
        """Label in ``y`` of each class, by its name; empty unless this is a ``classification``.

        Examples
        --------
        >>> Problem(np.eye(2), [1, -1]).labels
        {'-1': -1.0, '+1': 1.0}
        >>> Problem(np.eye(2), ["dog", "cat"], loss="softmax").labels
        {'cat': 0, 'dog': 1}
        """
        if self.class_names:
            return {name: number for number, name in enumerate(self.class_names)}
        return {"-1": -1.0, "+1": 1.0} if self.classification else {}

    @cached_property
    def targets(self) -> FloatArray:
        """Target of each output, shape (n, K): one-hot for classes, otherwise ``y``; read-only."""
        if self.class_names:
            found = np.eye(self.outputs_dim)[self.y]
            found.flags.writeable = False
            return found
        return self.y.reshape(self.samples, self.outputs_dim)

    @cached_property
    def squared_norms(self) -> FloatArray:
        """``||x_i||^2``, shape (n,)."""
        return np.einsum("ij,ij->i", self.X, self.X)

    def activate(self, z: FloatArray) -> FloatArray:
        """``phi(z)``, elementwise."""
        return ACTIVATIONS[self.activation].value(z)

    def slope(self, z: FloatArray) -> FloatArray:
        """``phi'(z)``, elementwise; 0 at 0 for the ReLU."""
        return ACTIVATIONS[self.activation].slope(z)

    def features(self, W: FloatArray) -> FloatArray:
        """Hidden features ``A = phi(X W^T)``, shape (n, h)."""
        return self.activate(self.X @ W.T)

    def outputs(self, weights: Weights) -> FloatArray:
        """``f(x_i)``, shape (n,), or (n, K) with K outputs."""
        return self.features(weights.W) @ weights.v

    def losses(self, f: FloatArray) -> FloatArray:
        """Per-sample losses at outputs ``f``, shape (..., n); broadcasts over leading dimensions."""
        loss = LOSSES[self.loss]
        if loss.classes:
            return loss.value(f, self.targets)
        values = loss.value(f, self.y)
        return values if self.y.ndim == 1 else values.sum(axis=-1)

    def residuals(self, f: FloatArray) -> FloatArray:
        """``r_i``, the derivative of the per-sample loss with respect to ``f``; of the shape of ``f``."""
        loss = LOSSES[self.loss]
        return loss.residual(f, self.targets if loss.classes else self.y)

    def gradient_norms(self, weights: Weights, method: Method) -> FloatArray:
        """Norms of the per-sample gradients over the trained parameters, shape (n,).

        Closed form ``||r_i||^2 ||A_i||^2 + [fft] ||x_i||^2 sum_j phi'(w_j . x_i)^2 (v_j . r_i)^2`` of their
        squares: no per-sample gradient is formed.
        """
        z = self.X @ weights.W.T
        a = self.activate(z)
        squared = np.einsum("ij,ij->i", a, a)
        residuals = self.residuals(a @ weights.v)
        if residuals.ndim == 1:
            # |r_i| factors out
            if method == "fft":
                squared = squared + self.squared_norms * (self.slope(z) ** 2 @ weights.v**2)
            return np.abs(residuals) * np.sqrt(squared)
        squared *= np.einsum("ik,ik->i", residuals, residuals)
        if method == "fft":
            back = self.slope(z) * (residuals @ weights.v.T)
            squared += self.squared_norms * np.einsum("ij,ij->i", back, back)
        return np.sqrt(squared)


def require_compatible(problem: Problem, weights: Weights, schedule: Schedule | None = None) -> None:
    """Refuse a problem, weights and a schedule that do not fit together.

    Raises
    ------
    ValueError
        On another input dimension or number of outputs, clipping that needs another loss, or batches that are
        expected to hold less than one sample.
    TypeError
        On subclasses that override a class.
    """
    validate.original("problem", problem, Problem)
    validate.original("weights", weights, Weights)
    if isinstance(weights, GramWeights) and problem.activation != "linear":
        raise ValueError(
            f"weights must hold single neurons for activation {problem.activation!r}, got GramWeights: "
            "take Weights, or a linear net"
        )
    if weights.dim != problem.dim:
        raise ValueError(
            f"weights.W must have as many columns as problem.X, got {weights.dim} and {problem.dim}"
        )
    if weights.outputs_dim != problem.outputs_dim:
        outputs = problem.outputs_dim
        shape = "(h,)" if outputs == 1 else f"(h, K={outputs})"
        raise ValueError(
            f"weights.v must have shape {shape} for this problem with {outputs} output(s), got "
            f"{weights.v.shape}: take a head of {outputs} output(s)"
        )
    if schedule is not None:
        require_schedule(problem, schedule)


def beyond_scalar(problem: Problem, schedule: Schedule) -> str:
    """Say what takes a run beyond one output, full batches and their clipping, or nothing.

    Such a run has a step loop of its own, `langevin.engine.kernels.outputs.loop.advance_outputs`.

    Examples
    --------
    >>> beyond_scalar(Problem(np.eye(2), [1, -1]), Schedule.lp(time=1.0, sample_rate=0.5))
    'sample_rate = 0.5'
    """
    if problem.outputs_dim > 1:
        return f"K = {problem.outputs_dim} outputs"
    for phase in schedule:
        if phase.sample_rate < 1:
            return f"sample_rate = {phase.sample_rate:g}"
        if phase.clipping in CLIPPING_LOSSES:
            return f"clipping = {phase.clipping!r}"
    return ""


def require_schedule(problem: Problem, schedule: Schedule) -> None:
    """Refuse phases that a problem's loss or number of samples rules out; see `require_compatible`."""
    for phase in validate.original("schedule", schedule, Schedule):
        loss = CLIPPING_LOSSES.get(phase.clipping, problem.loss)
        if loss != problem.loss:
            raise ValueError(
                f"clipping must be 'flat' or 'normalised' with loss {problem.loss!r}, got "
                f"{phase.clipping!r}, which is defined for loss {loss!r}"
            )
        if phase.sample_rate < 1 and phase.sample_rate * problem.samples < 1:
            raise ValueError(
                f"sample_rate must be at least 1/n = {1 / problem.samples:.3g} for {problem.samples} "
                f"samples, got {phase.sample_rate:g}: an expected batch holds less than one sample"
            )
