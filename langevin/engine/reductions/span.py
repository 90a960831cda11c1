"""Coordinates in the span of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import qr

from langevin.model.problem import Problem
from langevin.support.validate import FloatArray


@dataclass(frozen=True, eq=False)
class Span:
    """Coordinates of inputs and first layer in the span of the data (new; theory, section 7a).

    Outputs, gradients and hence the drift live in the span of the inputs, of dimension
    ``k = rank X <= min(n, d)``. The part of ``W`` across it has no drift: it stays put in the
    zeroth-order flow and is Brownian, independent of the rest, in the diffusion and in every
    Euler-Maruyama chain. Dropping it changes the law of nothing that is seen on the data.

    Attributes
    ----------
    inputs : int
        ``d``.
    basis : ndarray, shape (d, k), or None
        Orthonormal columns; the first ``rank X`` of them span the training inputs. None: the input space
        itself.
    order : ndarray of int, shape (n,)
        Order of the samples in which ``coordinates(X)[order]`` is lower triangular.
    """

    inputs: int
    basis: FloatArray | None
    order: np.ndarray

    @classmethod
    def of(cls, X: FloatArray, others: FloatArray | None = None) -> Span:
        """Return the span of the rows of ``X`` and of ``others``."""
        # by direction: a sample far shorter than another spans as much; by powers of two first, exactly,
        # so that no square leaves the range of doubles
        scaled = np.ldexp(X, -np.frexp(np.abs(X).max(axis=1, keepdims=True))[1])
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        basis, order = _range((scaled / np.where(lengths > 0, lengths, 1.0)).T)
        if basis.shape[1] == 0:
            basis = np.eye(X.shape[1], 1)
        if others is not None:
            across = others - (others @ basis) @ basis.T
            extra, _ = _range(across.T, scale=float(np.linalg.norm(others, axis=1).max()))
            extra -= basis @ (basis.T @ extra)
            basis = np.hstack([basis, np.linalg.qr(extra)[0]])
        return cls(X.shape[1], basis, order)

    @classmethod
    def whole(cls, problem: Problem) -> Span:
        """The input space itself."""
        return cls(problem.dim, None, np.arange(problem.samples))

    @property
    def dim(self) -> int:
        """``k``."""
        return self.inputs if self.basis is None else self.basis.shape[1]

    @property
    def complement_dim(self) -> int:
        """``d - k``."""
        return self.inputs - self.dim

    @property
    def trivial(self) -> bool:
        """Whether it is the input space itself."""
        return self.basis is None

    def coordinates(self, rows: FloatArray) -> FloatArray:
        """Coordinates in the span, shape (m, k), of ``rows`` (m, d)."""
        return rows if self.basis is None else rows @ self.basis

    def embed(self, rows: FloatArray) -> FloatArray:
        """The vectors, shape (m, d), with coordinates ``rows`` (m, k)."""
        return rows if self.basis is None else rows @ self.basis.T

    def complement_norms(self, rows: FloatArray) -> FloatArray:
        """Norms across the span, shape (m,)."""
        if self.complement_dim == 0:
            return np.zeros(rows.shape[0])
        return np.linalg.norm(rows - self.embed(self.coordinates(rows)), axis=1)


def _range(matrix: FloatArray, scale: float = 0.0) -> tuple[FloatArray, np.ndarray]:
    """Orthonormal basis of the columns' span, and the pivots' order."""
    factors: Any = qr(matrix, mode="economic", pivoting=True)
    q, r, order = factors
    diagonal = np.abs(np.diag(r))
    tolerance = max(matrix.shape) * np.finfo(np.float64).eps * max(diagonal.max(initial=0.0), scale)
    rank = int((diagonal > tolerance).sum())
    return q[:, :rank], order
