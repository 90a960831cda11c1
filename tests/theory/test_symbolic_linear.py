"""The identities behind the bounds of linear nets with K outputs, in symbols; each with a wrong constant."""

from typing import Any

import pytest
import sympy as sp

s = sp.Symbol("sigma", positive=True)
H, k, K, N = 3, 2, 2, 2


def matrix(name, rows, columns) -> Any:
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}{i}_{j}", real=True))


def net(samples=N) -> Any:
    """First layer, head, inputs, residuals, and ``U = X^T R``."""
    W, V, X, Y = matrix("w", H, k), matrix("v", H, K), matrix("x", samples, k), matrix("y", samples, K)
    R = X * W.T * V - Y
    return W, V, X, R, X.T * R


def laplacian(expression, *layers) -> Any:
    """Half the second-order term of Ito's formula for noise of variance ``2 sigma^2`` per unit time."""
    return s**2 * sum(sp.diff(expression, x, 2) for layer in layers for x in layer)


@pytest.mark.parametrize(("outputs", "right"), [(K, True), (1, False)])
def test_the_noise_in_the_loss_counts_every_output(outputs, right):
    """``sigma^2 (K ||X W^T||^2 + ||X||^2 ||V||^2)``: the trace of the kernel."""
    W, V, X, R, _ = net()
    loss = (R.T * R).trace() / 2
    trace = outputs * (X * W.T * W * X.T).trace() + (X * X.T).trace() * (V.T * V).trace()
    assert (sp.expand(laplacian(loss, W, V) - s**2 * trace) == 0) == right


@pytest.mark.parametrize(("factor", "right"), [(1, True), (2, False)])
def test_the_drift_of_the_loss(factor, right):
    """``||V U^T||^2 + ||W U||^2``: at least the smallest eigenvalues of both layers times ``||U||^2``."""
    W, V, _, R, U = net(1)
    loss = (R.T * R).trace() / 2
    squared = sum(sp.diff(loss, x) ** 2 for layer in (W, V) for x in layer)
    stated = (V * U.T * U * V.T).trace() + factor * (W * U * U.T * W.T).trace()
    assert (sp.expand(squared - stated) == 0) == right


@pytest.mark.parametrize(("sign", "right"), [(1, True), (-1, False)])
def test_the_product_of_the_layers_by_the_imbalance(sign, right):
    """``B^T B = S^2 - V^T D V`` and ``B B^T = T^2 + W^T D W`` with ``S = V^T V``, ``T = W^T W``."""
    W, V, _, _, _ = net()
    B, D = W.T * V, V * V.T - W * W.T
    head = B.T * B - (V.T * V) ** 2 + sign * V.T * D * V
    first = B * B.T - (W.T * W) ** 2 - sign * W.T * D * W
    assert (head.expand() == sp.zeros(K, K)) == right
    assert (first.expand() == sp.zeros(k, k)) == right


@pytest.mark.parametrize(("outputs", "right"), [(3, True), (1, False)])
def test_the_noise_in_the_imbalance(outputs, right):
    W, V = matrix("w", 2, 2), matrix("v", 2, 3)
    E = W * W.T - V * V.T
    drift = E.applyfunc(lambda x: laplacian(x, W, V))
    assert ((drift - 2 * s**2 * (2 - outputs) * sp.eye(2)).expand() == sp.zeros(2, 2)) == right


@pytest.mark.parametrize(("diagonal", "across", "right"), [(8, 2, True), (4, 2, False), (8, 4, False)])
def test_the_variation_of_the_imbalance(diagonal, across, right):
    """Of ``E_ii`` and of ``E_il``, with ``T = W W^T + V V^T``; in any basis, as the noise has none."""
    W, V, _, _, _ = net()
    E, T = W * W.T - V * V.T, W * W.T + V * V.T

    def variation(entry):
        return 2 * s**2 * sum(sp.diff(entry, x) ** 2 for layer in (W, V) for x in layer)

    same = sp.expand(variation(E[0, 0]) - diagonal * s**2 * T[0, 0])
    other = sp.expand(variation(E[0, 1]) - across * s**2 * (T[0, 0] + T[1, 1]))
    assert (same == 0 and other == 0) == right


@pytest.mark.parametrize(("wrong", "right"), [(False, True), (True, False)])
def test_the_drift_of_the_largest_eigenvalues(wrong, right):
    """At a head of zeros ``2 sigma^2 (h - K)`` on average; pairs among them cancel in the sum."""
    h, first, outputs, e = sp.symbols("h k K e", positive=True)
    # T_ii = e_i; the other eigenvalues, and T there, are 0
    others = (h - first) * 2 * s**2 * (e + 0) / (e - 0)
    stated = 2 * s**2 * ((first if wrong else h) - outputs)
    assert (sp.expand(2 * s**2 * (first - outputs) + others - stated) == 0) == right


@pytest.mark.parametrize(("factor", "right"), [(2, True), (1, False)])
def test_the_second_derivative_of_an_eigenvalue(factor, right):
    """``2 H_il^2 / (e_i - e_l)``, for one direction that mixes two eigenvectors."""
    a, b, c, t = sp.symbols("a b c t", positive=True)
    larger = (a + b + sp.sqrt((a - b) ** 2 + 4 * (t * c) ** 2)) / 2
    second = sp.diff(larger, t, 2).subs(t, 0).subs(sp.Abs(a - b), a - b).subs(sp.sqrt((a - b) ** 2), a - b)
    assert (sp.simplify(second - factor * c**2 / (a - b)) == 0) == right


@pytest.mark.parametrize(("wrong", "right"), [(False, True), (True, False)])
def test_how_fast_the_head_must_grow(wrong, right):
    """``-sum_{l > k} e_l <= ||V||^2`` drifts by at least ``2 sigma^2 K (h - k)``."""
    h, first, outputs = sp.symbols("h k K", positive=True)
    largest = first * (first - outputs) + first * (h - first)
    trace = h * (first - outputs)
    stated = (first if wrong else outputs) * (h - first)
    assert (sp.expand(largest - trace - stated) == 0) == right


@pytest.mark.parametrize(("scale", "right"), [(1, True), (sp.Rational(1, 2), False)])
def test_pairs_of_eigenvalues(scale, right):
    """``(e_i + e_l) (f'(e_i) - f'(e_l)) / (e_i - e_l) <= q (q + 1) (e_i^(-q-1) + e_l^(-q-1))``.

    With ``e = exp(-x)`` and ``exp(x)`` it reads ``tanh((q + 1) x) <= (q + 1) tanh(x)``, with equality at 0.
    """
    x, q = sp.symbols("x q", positive=True)
    smaller, larger = sp.exp(-x), sp.exp(x)
    slopes = [-q * e ** (-q - 1) for e in (smaller, larger)]
    left = (smaller + larger) * (slopes[0] - slopes[1]) / (smaller - larger)
    bound = q * (q + 1) * (smaller ** (-q - 1) + larger ** (-q - 1))
    ratio = sp.tanh((q + 1) * x) / ((q + 1) * sp.tanh(x))
    assert sp.simplify((left / bound - ratio).rewrite(sp.exp)) == 0
    values = [
        ratio.subs({q: sp.Rational(p, 4), x: sp.Rational(y, 8)}).evalf()
        for p in (1, 4, 20)
        for y in (1, 8, 40)
    ]
    assert all(value <= scale for value in values) == right
