"""The identities behind the bounds of K outputs and of the chain, in symbols; each with a wrong constant."""

from typing import Any

import numpy as np
import pytest
import sympy as sp

from bounds.distance.spread import DEFECTS
from langevin.model.gauge import gauge_basis
from langevin.model.losses import LOSSES


def matrix(name, rows, columns) -> Any:
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}{i}_{j}", real=True))


def softmax(K) -> Any:
    """Outputs, the loss of class 0, its probabilities and its residual."""
    f = sp.Matrix(sp.symbols(f"f:{K}", real=True))
    loss = sp.log(sum(sp.exp(x) for x in f)) - f[0]
    p = sp.Matrix([sp.exp(x) for x in f]) / sum(sp.exp(x) for x in f)
    return f, loss, p, p - sp.Matrix([1] + [0] * (K - 1))


def at(expression, f, p) -> Any:
    """The value at probabilities p, up to a number added to all outputs."""
    return expression.subs({x: sp.log(value) for x, value in zip(f, p, strict=True)})


@pytest.mark.parametrize(("target", "right"), [(1, True), (2, False)])
def test_gauge(target, right):
    f, loss, p, _ = softmax(3)
    r = p - target * sp.Matrix([1, 0, 0])
    assert (sp.simplify((sp.ones(1, 3) * r)[0]) == 0) == right
    # so the head's drift -A^T (c r) leaves the sum of its columns
    A, c = matrix("a", 2, 1), sp.Symbol("c", positive=True)
    assert (sp.simplify(-A * c * r.T * sp.ones(3, 1)) == sp.zeros(2, 1)) == right
    gradient = sp.Matrix([sp.diff(loss, x) for x in f])
    assert ((gradient - r).applyfunc(sp.simplify) == sp.zeros(3, 1)) == right


@pytest.mark.parametrize("K", [2, 3, 5])
def test_the_noise_in_gauge_coordinates_is_white(K):
    # Householder's reflection in symbols, column by column of the code's matrix
    root = sp.sqrt(K)
    E = sp.Matrix(
        K,
        K - 1,
        lambda i, j: 1 / root if i == K - 1 else -1 / (root * (root - 1)) + (1 if i == j else 0),
    )
    assert (E.T * E).applyfunc(sp.radsimp).applyfunc(sp.simplify) == sp.eye(K - 1)
    assert (sp.ones(1, K) * E).applyfunc(sp.radsimp).applyfunc(sp.simplify) == sp.zeros(1, K - 1)
    assert abs(sp.Matrix(gauge_basis(K)) - E.evalf()).norm() < 1e-12
    assert (2 * E.T * E).applyfunc(sp.simplify) != sp.eye(K - 1)


@pytest.mark.parametrize(("layers", "conserved"), [(1, True), (2, False)])
def test_balancedness_with_clip_factors(layers, conserved):
    """``VV^T - WW^T`` of a linear net, with a factor per sample; another for the first layer breaks it."""
    h, d, K, n = 2, 2, 3, 2
    W, V, X, R = matrix("w", h, d), matrix("v", h, K), matrix("x", n, d), matrix("r", n, K)
    c = sp.diag(*sp.symbols("c:2", positive=True))
    U = X.T * c * R
    dW, dV = -V * (X.T * layers * c * R).T, -W * U
    change = dV * V.T + V * dV.T - dW * W.T - W * dW.T
    assert (change.expand() == sp.zeros(h, h)) == conserved


@pytest.mark.parametrize(("ratio", "conserved"), [(1, True), (2, False)])
def test_balancedness_of_a_relu_neuron_and_in_gauge_coordinates(ratio, conserved):
    # w' = -sum c a (V.r) x, V' = -sum c a (w.x) r; a the activation pattern
    w, x, r = matrix("w", 3, 1), matrix("x", 2, 3), matrix("r", 2, 3)
    V, a = matrix("v", 1, 3), sp.Matrix(sp.symbols("ca:2", real=True))
    active = sp.diag(*a)
    dw, dV = -x.T * active * r * V.T, -(x * w).T * active * r
    assert (sp.expand((2 * V * dV.T - ratio * 2 * w.T * dw)[0]) == 0) == conserved
    # the residuals of softmax sum to zero: then also without the mean of V
    centred = sp.eye(3) - sp.ones(3, 3) / 3
    change = (2 * V * centred * dV.T - ratio * 2 * w.T * dw)[0]
    zero = {r[i, 2]: -r[i, 0] - r[i, 1] for i in range(2)}
    assert (sp.expand(change.subs(zero)) == 0) == conserved


@pytest.mark.parametrize("K", [2, 3, 10])
@pytest.mark.parametrize(("shift", "right"), [(0, True), (sp.Rational(1, 10), False)])
def test_omega_of_k_classes(K, shift, right):
    m = sp.Symbol("m", real=True)
    omega = sp.LambertW((K - 1) * sp.exp(-1) + shift)
    best = 1 + omega
    pull = m * (K - 1) / (sp.exp(m) + K - 1)
    slope, value = sp.diff(pull, m).subs(m, best), pull.subs(m, best) - omega
    assert (abs(sp.N(slope, 30)) < 1e-25 and abs(sp.N(value, 30)) < 1e-25) == right
    growth = LOSSES["softmax"].growth
    assert growth is not None
    assert (abs(growth(np.eye(K))[0] - float(omega)) < 1e-14) == right


def test_what_omega_bounds():
    """``-r . f = sum p_k (f_y - f_k)``, whatever is added to all outputs."""
    f, _, p, r = softmax(3)
    assert sp.simplify(-(r.T * f)[0] - sum(p[k] * (f[0] - f[k]) for k in (1, 2))) == 0
    assert sp.simplify(-(r.T * f)[0] - sum(2 * p[k] * (f[0] - f[k]) for k in (1, 2))) != 0


@pytest.mark.parametrize(
    ("p", "monotone"),
    [
        ((sp.Rational(1, 20), sp.Rational(16, 20), sp.Rational(3, 20)), False),
        ((sp.Rational(1, 20), sp.Rational(19, 40), sp.Rational(19, 40)), True),
    ],
)
def test_the_jacobian_of_the_clipped_residual(p, monotone):
    """``J = (I - s s^T) H / rho``: asymmetric, and not monotone unless the others are equal."""
    f, _, _, r = softmax(3)
    unit = r / sp.sqrt((r.T * r)[0])
    J = at(unit.jacobian(list(f)), f, p).applyfunc(sp.nsimplify)
    q = sp.Matrix([0, p[1], p[2]]) / (1 - p[0])
    H = sp.diag(*q) - q * q.T
    rho = sp.sqrt(1 + (q.T * q)[0])
    s = (q - sp.Matrix([1, 0, 0])) / rho
    stated = (sp.eye(3) - s * s.T) * H / rho
    assert (J - stated).applyfunc(sp.simplify) == sp.zeros(3, 3)
    assert (J - stated * 2).applyfunc(sp.simplify) != sp.zeros(3, 3)
    asymmetry = max(abs(sp.N(x)) for x in J - J.T)
    lowest = min(sp.re(sp.N(x)) for x in ((J + J.T) / 2).evalf(40).eigenvals())
    if monotone:
        assert asymmetry == 0
        assert abs(lowest) < 1e-20
    else:
        assert abs(asymmetry - 0.03984) < 1e-5
        assert abs(lowest + 0.006568) < 1e-6
        assert lowest > -DEFECTS["softmax"]


@pytest.mark.parametrize(("shift", "right"), [(0, True), (sp.Rational(1, 100), False)])
def test_the_largest_lack_of_monotonicity(shift, right):
    a = sp.Symbol("a", positive=True)
    bound = a**3 * (1 - a) / (4 * (1 + a**2) ** sp.Rational(3, 2))
    slope = sp.numer(sp.together(sp.diff(sp.log(bound), a)))
    assert sp.rem(slope, a**3 + 4 * a - 3, a) == 0
    best = max(sp.re(x) for x in sp.Poly(a**3 + 4 * a - 3 - shift).nroots(30))
    assert (abs(sp.N(sp.diff(bound, a).subs(a, best))) < 1e-20) == right
    assert (0 < DEFECTS["softmax"] - float(bound.subs(a, best)) < 1e-7) == right


@pytest.mark.parametrize(("factor", "right"), [("margin", True), ("flat", False)])
def test_the_margin_clipped_loss_is_convex(factor, right):
    """While clipped, the margin's clip leaves ``-kappa`` times the gradient of a concave margin."""
    f, _, p, r = softmax(3)
    margin = f[0] - sp.log(sp.exp(f[1]) + sp.exp(f[2]))
    g = 1 - p[0]
    gradient = sp.Matrix([sp.diff(margin, x) for x in f])
    # r = -g grad M
    assert (r + g * gradient).applyfunc(sp.simplify) == sp.zeros(3, 1)
    size = g if factor == "margin" else sp.sqrt((r.T * r)[0])
    clipped = (r / size).applyfunc(sp.simplify)
    J = clipped.jacobian(list(f))
    u: Any = sp.Matrix(sp.symbols("u:3", real=True))
    q = [sp.exp(x) / (sp.exp(f[1]) + sp.exp(f[2])) for x in f[1:]]
    # a variance: never negative
    variance = q[0] * q[1] * (u[1] - u[2]) ** 2
    assert (sp.simplify((u.T * J * u)[0] - variance) == 0) == right
    assert ((J - J.T).applyfunc(sp.simplify) == sp.zeros(3, 3)) == right


@pytest.mark.parametrize(("slope", "right"), [(1, True), (2, False)])
def test_the_margin_clip_is_the_gradient_of_a_huberised_loss(slope, right):
    """``log(1 + e^-M)`` up to where its slope is ``kappa``, beyond a line of that slope: convex in ``-M``."""
    M, k = sp.Symbol("M", real=True), sp.Rational(1, 4)
    loss = sp.log(1 + sp.exp(-M))
    switch = sp.log(1 / k - 1)
    line = loss.subs(M, switch) - slope * k * (M - switch)
    assert (sp.simplify(sp.diff(loss - line, M).subs(M, switch)) == 0) == right
    assert sp.simplify(sp.diff(loss, M, 2) - sp.exp(M) / (1 + sp.exp(M)) ** 2) == 0


@pytest.mark.parametrize(("half", "right"), [(sp.Rational(1, 2), True), (1, False)])
def test_what_a_step_adds_under_flat_clipping(half, right):
    """The largest ``-(2 - b) w^2 - (2 - 2 b) w s + b s^2`` is ``s^2 / (2 - b)``: ``1 / (1 - b / 2) / 2``."""
    b, w, s = sp.Symbol("b", positive=True), sp.Symbol("w", real=True), sp.Symbol("s", real=True)
    form = -(2 - b) * w**2 - (2 - 2 * b) * w * s + b * s**2
    best = sp.solve(sp.diff(form, w), w)[0]
    stated = half * s**2 / (1 - b / 2)
    assert (sp.simplify(form.subs(w, best) - stated) == 0) == right


@pytest.mark.parametrize(("power", "right"), [(1, True), (2, False)])
def test_the_sampling_noise(power, right):
    """The variance of a Bernoulli weight ``b / q`` is ``(1 - q) / q``."""
    q = sp.Symbol("q", positive=True)
    variance = q * (1 / q) ** 2 - 1
    assert (sp.simplify(variance - (1 - q) / q**power) == 0) == right


@pytest.mark.parametrize(("head", "right"), [(sp.sqrt(2), True), (1, False)])
def test_two_outputs_of_softmax_are_one_of_the_logistic_loss(head, right):
    """``v = (V_1 - V_0) / sqrt(2)`` on inputs ``sqrt(2) x``: same output, drift and gradient norm."""
    f, loss, _, r = softmax(2)
    m = f[0] - f[1]
    assert sp.simplify(sp.exp(loss) - (1 + sp.exp(-m))) == 0
    slope = 1 / (1 + sp.exp(m))
    # norm of the gradient: of two outputs ||r|| ||A||, of one slope ||sqrt(2) A||
    assert (sp.simplify((r.T * r)[0] - head**2 * slope**2) == 0) == right
    # drift of (V_0 - V_1) / head: of one output slope times the scaled features
    assert (sp.simplify((-r[0] + r[1]) / head - head * slope) == 0) == right


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("scale", ["root", "one"])
def test_symmetric_heads_are_a_scalar_net(K, scale):
    """4b'(a): head ``(V_c - b) / s``, inputs ``s x``, loss ``log(1 + (K - 1) exp(-m))``."""
    s = sp.sqrt(sp.Rational(K, K - 1)) if scale == "root" else sp.Integer(1)
    f, loss, _, r = softmax(K)
    # heads of one neuron (V_c, b, ..., b), of pre-activation z; u is what others add to its class's output
    Vc, b, z, u, x2, m = sp.symbols("Vc b z u x2 m", real=True)
    V = sp.Matrix([Vc] + [b] * (K - 1))
    like = {f[0]: Vc * z + u, **{f[k]: b * z for k in range(1, K)}}
    r = r.subs(like).applyfunc(sp.simplify)
    scalar, v = sp.log(1 + (K - 1) * sp.exp(-m)), (Vc - b) / s
    margin = v * s * z + u
    g = -sp.diff(scalar, m).subs(m, margin)
    # the loss, and symmetry that lasts; the sum of the heads is conserved
    assert sp.simplify(sp.exp(loss.subs(like)) - sp.exp(scalar.subs(m, margin))) == 0
    assert all(sp.simplify(r[k] - r[1]) == 0 for k in range(1, K))
    assert sp.simplify((sp.ones(1, K) * r)[0]) == 0
    # drift of the head, of the pre-activation, and the norm of the gradient: those of the scalar net
    right = scale == "root"
    assert (sp.simplify((-r[0] + r[1]) * z / s - g * s * z) == 0) == right
    assert sp.simplify(-(V.T * r)[0] - g * v * s) == 0
    norm = (r.T * r)[0] * z**2 + x2 * (V.T * r)[0] ** 2
    assert (sp.simplify(norm - g**2 * ((s * z) ** 2 + s**2 * x2 * v**2)) == 0) == right


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize(("power", "right"), [(sp.Rational(1, 2), True), (1, False)])
def test_opposed_heads_of_one_vs_rest_are_a_scalar_net(K, power, right):
    """4b'(a): head ``s V_c``, loss ``K log(1 + exp(-f / s))``, if ``s^2 = K``."""
    s = sp.Integer(K) ** power
    Vc, z, u, x2, f = sp.symbols("Vc z u x2 f", real=True)
    V = Vc * sp.Matrix([1] + [-1] * (K - 1))
    own = Vc * z + u
    sigmoid = 1 / (1 + sp.exp(-own))
    r: Any = sp.Matrix([sigmoid - 1] + [1 - 1 / (1 + sp.exp(-own))] * (K - 1))
    # of the other classes: sigmoid of minus the own output
    assert sp.simplify(1 - sigmoid - 1 / (1 + sp.exp(own))) == 0
    scalar = K * sp.log(1 + sp.exp(-f / s))
    g, v = -sp.diff(scalar, f).subs(f, s * own), s * Vc
    # the drift of the other heads is minus that of the own one
    assert all(sp.simplify(r[k] + r[0]) == 0 for k in range(1, K))
    assert (sp.simplify(-s * r[0] * z - g * z) == 0) == right
    assert sp.simplify(-(V.T * r)[0] - g * v) == 0
    norm = (r.T * r)[0] * z**2 + x2 * (V.T * r)[0] ** 2
    assert (sp.simplify(norm - g**2 * (z**2 + x2 * v**2)) == 0) == right


@pytest.mark.parametrize(("product", "right"), [(None, True), (1, False)])
def test_how_the_margins_of_a_class_move(product, right):
    """4b'(b): in the clock, ``M_i`` moves at means of ``z_ji z_jk (1 + q_i . q_k) + a_ji a_jk G_ik``."""
    w, x, V = matrix("w", 1, 2), matrix("x", 2, 2), matrix("v", 1, 3)
    c = sp.symbols("c:2", positive=True)
    z: Any = x * w.T
    q: list[Any] = []
    for i in range(2):
        shares = [sp.exp(V[k] * z[i]) for k in (1, 2)]
        q.append(sp.Matrix([0, *(share / sum(shares) for share in shares)]))
    pull = [V[0] - (V * q[i])[0] for i in range(2)]
    # each sample moves the head by z (e_c - q) and the neuron by a x, times c g
    own = sp.Matrix([1, 0, 0])
    dV: Any = sum((c[k] * z[k] * (own - q[k]).T for k in range(2)), sp.zeros(1, 3))
    dw: Any = sum((c[k] * pull[k] * x[k, :] for k in range(2)), sp.zeros(1, 2))
    M = V[0] * z[0] - sp.log(sp.exp(V[1] * z[0]) + sp.exp(V[2] * z[0]))
    moved = sum(sp.diff(M, V[k]) * dV[k] for k in range(3)) + sum(sp.diff(M, w[k]) * dw[k] for k in range(2))
    stated: Any = sum(
        c[k]
        * (
            z[0] * z[k] * (1 + ((q[0].T * q[k])[0] if product is None else product))
            + pull[0] * pull[k] * (x[0, :] * x[k, :].T)[0]
        )
        for k in range(2)
    )
    numbers = [sp.Rational(k, 7) for k in range(3, 14)]
    point = dict(zip([*w, *x, *V, *c], numbers, strict=True))
    assert (abs(sp.N((moved - stated).subs(point), 30)) < 1e-25) == right


@pytest.mark.parametrize(("power", "right"), [(sp.Rational(1, 2), True), (1, False)])
def test_the_flow_of_a_collapsed_class(power, right):
    """4b'(c): the Gram matrix of ``[u, V]``, ``u = W x / ||x||``, obeys ``M' = n ||x|| c (M B + B^T M)``."""
    h, d, K, n = 1, 2, 2, 4
    W, V, x, r = matrix("w", h, d), matrix("v", h, K), matrix("x", d, 1), matrix("r", K, 1)
    c = sp.Symbol("c", positive=True)
    square = (x.T * x)[0]
    length = square**power
    u = W * x / sp.sqrt(square)
    # of n equal samples: -c (V_j . r) x for each neuron, -c (w_j . x) r for each head
    dW, dV = -n * c * (V * r) * x.T, -n * c * (W * x) * r.T
    state, change = u.row_join(V), (dW * x / sp.sqrt(square)).row_join(dV)
    M = state.T * state
    moved = change.T * state + state.T * change
    B = sp.zeros(1, 1).row_join(-r.T).col_join((-r).row_join(sp.zeros(K, K)))
    stated = n * length * c * (M * B + B.T * M)
    assert ((moved - stated).applyfunc(sp.simplify) == sp.zeros(K + 1, K + 1)) == right
    # the outputs and the norm of the gradient, read off M
    assert (V.T * W * x - sp.sqrt(square) * M[1:, 0]).applyfunc(sp.simplify) == sp.zeros(K, 1)
    norm = (r.T * r)[0] * ((W * x).T * (W * x))[0] + square * ((V * r).T * (V * r))[0]
    read = square * ((r.T * r)[0] * M[0, 0] + (r.T * M[1:, 1:] * r)[0])
    assert sp.simplify(norm - read) == 0
