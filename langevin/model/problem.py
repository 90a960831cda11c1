"""Data, network and loss of what is learnt (`Problem`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES
from langevin.model.weights import GramWeights, Method, Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

# names in the tables of `langevin.model`
Activation = str
Loss = str


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, activation and loss of a two-layer network ``f(x) = sum_j v_j phi(w_j . x)``.

    The training loss is the *sum* of the per-sample losses, as in [1]_. Solvers and bounds refuse subclasses
    that override a method or property, of which they have their own copies.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Inputs.
    y : array_like, shape (n,)
        Labels -1 and +1. The square and Huber losses also take any real targets (regression).
    activation : str
        ``phi``, a name in `langevin.model.activations.ACTIVATIONS`: ``"relu"`` (its derivative at 0 is 0),
        ``"linear"``, ``"gelu"`` (exact, ``z`` times the normal distribution function) or ``"tanh"``.
    loss : str
        A name in `langevin.model.losses.LOSSES`: ``"logistic"`` is ``log(1 + exp(-y f))``, ``"square"``
        ``(f - y)^2 / 2``, ``"huber"`` the same up to ``|f - y| = 1``, and ``|f - y| - 1/2`` beyond.
    X_test, y_test : array_like, optional
        Held-out points, shapes (m, d) and (m,); used by test observables only.

    Attributes
    ----------
    classification : bool
        Whether all labels are -1 or +1.

    Raises
    ------
    ValueError, TypeError
        On shapes that do not fit, values that are missing, masked, not finite or no numbers, or labels that
        are not -1, +1.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, "Characterizing the Training Dynamics of Private Fine-tuning with
       Langevin diffusion", arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> problem.samples, problem.dim, problem.classification
    (2, 2, True)
    """

    X: FloatArray
    y: FloatArray
    activation: Activation = "relu"
    loss: Loss = "logistic"
    X_test: FloatArray | None = None
    y_test: FloatArray | None = None

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        activation: Activation = "relu",
        loss: Loss = "logistic",
        X_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
    ) -> None:
        validate.choice("activation", activation, ACTIVATIONS)
        validate.choice("loss", loss, LOSSES)
        X, y = validate.array("X", X, 2), validate.array("y", y, 1)
        validate.same_length("X", X, "y", y)
        if LOSSES[loss].signs:
            validate.labels("y", y)
        if (X_test is None) != (y_test is None):
            raise ValueError("X_test and y_test must be given together: one of them is None")
        if X_test is not None and y_test is not None:
            X_test, y_test = validate.array("X_test", X_test, 2), validate.array("y_test", y_test, 1)
            validate.same_length("X_test", X_test, "y_test", y_test)
            if X_test.shape[1] != X.shape[1]:
                raise ValueError(
                    f"X_test must have as many columns as X, got {X_test.shape[1]} and {X.shape[1]}"
                )
            if LOSSES[loss].signs:
                validate.labels("y_test", y_test)
        fields = dict(X=X, y=y, activation=activation, loss=loss, X_test=X_test, y_test=y_test)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def samples(self) -> int:
        """Number of training samples ``n``."""
        return self.X.shape[0]

    @property
    def dim(self) -> int:
        """Input dimension ``d``."""
        return self.X.shape[1]

    @cached_property
    def classification(self) -> bool:
        return bool((np.abs(self.y) == 1.0).all())

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
        """``f(x_i)``, shape (n,)."""
        return self.features(weights.W) @ weights.v

    def losses(self, f: FloatArray) -> FloatArray:
        """Per-sample losses at outputs ``f``; broadcasts over leading dimensions."""
        return LOSSES[self.loss].value(f, self.y)

    def residuals(self, f: FloatArray) -> FloatArray:
        """``r_i``, the derivative of the per-sample loss with respect to ``f``."""
        return LOSSES[self.loss].residual(f, self.y)

    def gradient_norms(self, weights: Weights, method: Method) -> FloatArray:
        """Norms of the per-sample gradients over the trained parameters, shape (n,).

        Closed form ``r_i^2 (||A_i||^2 + [fft] ||x_i||^2 sum_j v_j^2 phi'(w_j . x_i)^2)``: no
        per-sample gradient is formed.
        """
        z = self.X @ weights.W.T
        a = self.activate(z)
        squared = np.einsum("ij,ij->i", a, a)
        if method == "fft":
            squared = squared + self.squared_norms * (self.slope(z) ** 2 @ weights.v**2)
        return np.abs(self.residuals(a @ weights.v)) * np.sqrt(squared)


def require_compatible(problem: Problem, weights: Weights) -> None:
    """Refuse weights whose input dimension is not the data's, and subclasses that override either class."""
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
