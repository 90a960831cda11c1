"""What is learnt: data, network and loss (`Problem`), and where training starts (`Weights`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin import _validate
from langevin._validate import FloatArray
from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES

# names in the tables of `langevin.model`
Activation = str
Loss = str
Method = Literal["lp", "fft"]

# entries of weights that are read at once
BLOCK_ENTRIES = 2**22
# so that the degrees of freedom of their noise are whole numbers of 64 bits
MOST_NEURONS = 10**12


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
        _validate.choice("activation", activation, ACTIVATIONS)
        _validate.choice("loss", loss, LOSSES)
        X, y = _validate.array("X", X, 2), _validate.array("y", y, 1)
        _validate.same_length("X", X, "y", y)
        if LOSSES[loss].signs:
            _validate.labels("y", y)
        if (X_test is None) != (y_test is None):
            raise ValueError("X_test and y_test must be given together: one of them is None")
        if X_test is not None and y_test is not None:
            X_test, y_test = _validate.array("X_test", X_test, 2), _validate.array("y_test", y_test, 1)
            _validate.same_length("X_test", X_test, "y_test", y_test)
            if X_test.shape[1] != X.shape[1]:
                raise ValueError(
                    f"X_test must have as many columns as X, got {X_test.shape[1]} and {X.shape[1]}"
                )
            if LOSSES[loss].signs:
                _validate.labels("y_test", y_test)
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


@dataclass(frozen=True, eq=False)
class Weights:
    """Initial parameters of a two-layer network.

    Parameters
    ----------
    W : array_like, shape (h, d)
        First layer; row ``w_j`` is the feature of neuron ``j``. A read-only memory map stays one: reductions
        to few dimensions, such as linear probing's, read it in blocks of rows.
    v : array_like, shape (h,)
        Head.

    Examples
    --------
    >>> Weights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5]).width
    2
    """

    W: FloatArray
    v: FloatArray

    def __init__(self, W: ArrayLike, v: ArrayLike) -> None:
        W, v = _validate.array("W", W, 2), _validate.array("v", v, 1)
        _validate.same_length("W", W, "v", v)
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "v", v)

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.W.shape[0]

    @property
    def dim(self) -> int:
        """Input dimension ``d``."""
        return self.W.shape[1]

    def trained_parameters(self, method: Method) -> int:
        """Number of trained parameters ``p``: ``h`` in LP, ``h d + h`` in FFT."""
        return self.width * (self.dim + 1) if method == "fft" else self.width


@dataclass(frozen=True, eq=False)
class GramWeights(Weights):
    """Initial parameters of a linear net of any width, known by their Gram matrix alone.

    Outputs, gradient norms and hence the clipped dynamics of a linear net depend on ``[W, v]`` only through
    ``[W, v]^T [W, v]`` (new; theory, section 7c): the rows given here have the Gram matrix of the net of
    ``width`` neurons, and are not themselves its neurons.

    Parameters
    ----------
    W : array_like, shape (r, d)
    v : array_like, shape (r,)
    neurons : int
        The net's width ``h >= r``.

    See Also
    --------
    langevin.gaussian_gram : draws Gaussian features and head of such a net.

    Examples
    --------
    >>> weights = GramWeights([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5], neurons=10**9)
    >>> weights.width
    1000000000
    """

    neurons: int

    def __init__(self, W: ArrayLike, v: ArrayLike, neurons: int) -> None:
        super().__init__(W, v)
        neurons = countable("neurons", _validate.integer("neurons", neurons, len(self.W)))
        object.__setattr__(self, "neurons", neurons)

    @classmethod
    def from_rows(cls, W: Any, v: Any) -> GramWeights:
        """Read weights in blocks of rows: ``W`` and ``v`` may be larger than memory.

        Parameters
        ----------
        W, v : array_like, shapes (h, d) and (h,)
            Anything with a shape whose slices are arrays: memory maps, HDF5 or Zarr arrays.
        """
        W, v = (
            array if hasattr(array, "shape") else _validate.array(name, array, ndim)
            for name, array, ndim in (("W", W, 2), ("v", v, 1))
        )
        if len(W.shape) != 2 or W.shape[0] < 1 or tuple(v.shape) != (W.shape[0],):
            raise ValueError(
                f"W and v must have shapes (h, d) and (h,), got {tuple(W.shape)} and {tuple(v.shape)}"
            )

        def block(rows: slice) -> FloatArray:
            try:
                part = Weights(W[rows], v[rows])
            except ValueError as error:
                raise ValueError(f"in rows {rows.start} to {rows.stop - 1}, {error}") from None
            return np.column_stack([part.W, part.v])

        rows = triangle(block(rows) for rows in blocks_of_rows(W.shape[0], W.shape[1] + 1))
        return cls(rows[:, :-1], rows[:, -1], W.shape[0])

    @property
    def width(self) -> int:
        """Number of neurons ``h``."""
        return self.neurons


def countable(name: str, neurons: int) -> int:
    """Return ``neurons`` if a Gram matrix may stand for so many."""
    if neurons > MOST_NEURONS:
        raise ValueError(f"{name} must be at most {MOST_NEURONS:.0e}, got {neurons}: take fewer")
    return neurons


def blocks_of_rows(count: int, columns: int) -> Iterator[slice]:
    """Cut ``count`` rows of so many ``columns`` into blocks that are read at once."""
    size = max(columns, BLOCK_ENTRIES // columns)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def triangle(blocks: Iterable[FloatArray]) -> FloatArray:
    """Triangular factor ``R`` of the matrix whose blocks of rows these are: ``R^T R`` is its Gram matrix.

    By QR of one block after the other, never from the Gram matrix, whose rounding would hide small rows.
    """
    rows: FloatArray | None = None
    for block in blocks:
        stack = block if rows is None else np.vstack([rows, block])
        rows = np.asarray(np.linalg.qr(stack, mode="r"))
    assert rows is not None
    return rows


def require_compatible(problem: Problem, weights: Weights) -> None:
    """Refuse weights whose input dimension is not the data's, and subclasses that override either class."""
    _validate.original("problem", problem, Problem)
    _validate.original("weights", weights, Weights)
    if isinstance(weights, GramWeights) and problem.activation != "linear":
        raise ValueError(
            f"weights must hold single neurons for activation {problem.activation!r}, got GramWeights: "
            "take Weights, or a linear net"
        )
    if weights.dim != problem.dim:
        raise ValueError(
            f"weights.W must have as many columns as problem.X, got {weights.dim} and {problem.dim}"
        )
