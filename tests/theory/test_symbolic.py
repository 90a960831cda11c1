"""The identities behind the bounds, in symbols; each with a wrong constant that must fail."""

import pytest
import sympy as sp
from scipy.special import lambertw

from langevin.model.losses import OMEGA

t, s = sp.symbols("t sigma", positive=True)


def linear_net(h=2, k=2, n=2):
    """Symbols of a linear net: W, v, X, residual-times-clipping factors u, and the FFT drift."""
    W = sp.Matrix(h, k, lambda i, j: sp.Symbol(f"w{i}{j}", real=True))
    v = sp.Matrix(h, 1, lambda i, _: sp.Symbol(f"v{i}", real=True))
    X = sp.Matrix(n, k, lambda i, j: sp.Symbol(f"x{i}{j}", real=True))
    # c_i r_i, whatever the clipping and the loss
    u = sp.Matrix(n, 1, lambda i, _: sp.Symbol(f"u{i}", real=True))
    return W, v, X, u, -v * u.T * X, -W * X.T * u


@pytest.mark.parametrize(("ratio", "conserved"), [(1, True), (2, False)])
def test_balancedness_under_clipping(ratio, conserved):
    W, v, _, _, dW, dv = linear_net()
    change = dv * v.T + v * dv.T - ratio * (dW * W.T + W * dW.T)
    assert (change.expand() == sp.zeros(2, 2)) == conserved


@pytest.mark.parametrize(("ratio", "conserved"), [(1, True), (sp.Rational(1, 2), False)])
def test_balancedness_of_a_relu_neuron(ratio, conserved):
    # one neuron: w' = -v sum c r a x, v' = -sum c r a (w.x), a the activation pattern
    w, x = sp.Matrix(sp.symbols("w:3", real=True)), sp.Matrix(2, 3, sp.symbols("x:6", real=True))
    v, a = sp.Symbol("v", real=True), sp.Matrix(sp.symbols("a:2", real=True))
    dw, dv = -v * x.T * a, -(a.T * x * w)[0]
    assert (sp.expand(2 * v * dv - ratio * 2 * (w.T * dw)[0]) == 0) == conserved


@pytest.mark.parametrize(("factor", "right"), [(1, True), (2, False)])
def test_ito_correction_is_the_trace_of_the_kernel(factor, right):
    h, k, n = 2, 2, 2
    W, v, X, _, _, _ = linear_net(h, k, n)
    y = sp.Matrix(sp.symbols("y:2", real=True))
    r = X * W.T * v - y
    loss = (r.T * r)[0] / 2
    theta = [*W, *v]
    # Ito: half the quadratic variation 2 sigma^2 times the Laplacian, less the Laplacian's residual part
    ito = s**2 * sum(sp.diff(loss, p, 2) for p in theta)
    K = X * (W.T * W + (v.T * v)[0] * sp.eye(k)) * X.T
    assert (sp.expand(ito - factor * s**2 * K.trace()) == 0) == right
    # and the drift is -r^T K r
    gradient = sp.Matrix([sp.diff(loss, p) for p in theta])
    assert sp.expand((gradient.T * gradient)[0] - (r.T * K * r)[0]) == 0


@pytest.mark.parametrize(("scale", "right"), [(1, True), (2, False)])
def test_ornstein_uhlenbeck_head(scale, right):
    lam, m0 = sp.symbols("lambda m", positive=True)
    mean, variance = m0 * sp.exp(-lam * t), scale * s**2 / lam * (1 - sp.exp(-2 * lam * t))
    assert sp.simplify(sp.diff(mean, t) + lam * mean) == 0
    assert (sp.simplify(sp.diff(variance, t) + 2 * lam * variance - 2 * s**2) == 0) == right
    loss = lam * (mean**2 + variance) / 2
    stated = lam * m0**2 * sp.exp(-2 * lam * t) / 2 + s**2 * (1 - sp.exp(-2 * lam * t)) / 2
    assert (sp.simplify(loss - stated) == 0) == right


@pytest.mark.parametrize(("count", "right"), [(-1, True), (0, False)])
def test_expected_imbalance(count, right):
    # Ito of v v^T - W W^T: 2 sigma^2 I from the head, 2 sigma^2 k I from the k columns
    h, k = 2, 3
    W, v, _, _, _, _ = linear_net(h, k)
    D = v * v.T - W * W.T
    theta = [*W, *v]
    correction = D.applyfunc(lambda e: s**2 * sum(sp.diff(e, p, 2) for p in theta))
    assert ((correction + 2 * s**2 * (k + count) * sp.eye(h)).expand() == sp.zeros(h, h)) == right


@pytest.mark.parametrize(("factor", "right"), [(4, True), (2, False)])
def test_girsanov_rate(factor, right):
    # Renyi divergence of N(a dt, 2 sigma^2 dt) from N(b dt, 2 sigma^2 dt), |a - b| = Delta, per dt
    gap, dt = sp.symbols("Delta dt", positive=True)
    x = sp.Symbol("x", real=True)
    variance = 2 * s**2 * dt

    def density(mean):
        return sp.exp(-((x - mean) ** 2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)

    order = 3
    integrand = sp.simplify(density(gap * dt) ** order * density(0) ** (1 - order))
    moment = sp.integrate(sp.powsimp(integrand), (x, -sp.oo, sp.oo))
    renyi = sp.simplify(sp.expand_log(sp.log(sp.simplify(moment)), force=True) / (order - 1))
    rho = gap**2 * dt / (factor * s**2)
    assert (sp.simplify(renyi - order * rho) == 0) == right
    # mu of the Gaussian mechanism: sensitivity over standard deviation
    mu = gap * dt / sp.sqrt(variance)
    assert (sp.simplify(mu**2 - 2 * rho) == 0) == right


@pytest.mark.parametrize(("rate", "right"), [(1, True), (2, False)])
def test_envelope_solution(rate, right):
    G, a0, z0, S = sp.symbols("G alpha z S", positive=True)
    g = sp.sqrt(G)
    alpha = a0 * sp.cosh(g * S) + z0 * sp.sinh(g * S) / g
    z = z0 * sp.cosh(g * S) + g * a0 * sp.sinh(g * S)
    area = a0 * sp.sinh(g * S) / g + 2 * z0 * (sp.sinh(g * S / 2) / g) ** 2
    assert sp.simplify(sp.diff(alpha, S) - z) == 0
    assert (sp.simplify(sp.diff(z, S) - rate * G * alpha) == 0) == right
    assert sp.simplify((sp.diff(area, S) - alpha).rewrite(sp.exp)) == 0
    # the limit G -> 0, and the conserved quantity of 3.3
    assert sp.limit(alpha, G, 0) == a0 + z0 * S
    assert (
        sp.simplify((z**2 - rate * G * alpha**2 - z0**2 + rate * G * a0**2).rewrite(sp.exp)) == 0
    ) == right


@pytest.mark.parametrize(("shift", "right"), [(0, True), (sp.Rational(1, 10), False)])
def test_omega(shift, right):
    m = sp.Symbol("m", real=True)
    omega = sp.LambertW(sp.exp(-1) + shift)
    best = 1 + omega
    slope = sp.diff(m / (1 + sp.exp(m)), m).subs(m, best)
    value = (m / (1 + sp.exp(m))).subs(m, best) - omega
    assert (abs(sp.N(slope, 30)) < 1e-25 and abs(sp.N(value, 30)) < 1e-25) == right
    assert float(lambertw(float(sp.exp(-1).evalf())).real) == pytest.approx(OMEGA, rel=1e-14)
    assert float(sp.LambertW(sp.exp(-1))) == pytest.approx(OMEGA, rel=1e-14)


@pytest.mark.parametrize(("width", "right"), [(1, True), (2, False)])
def test_drift_of_the_reduced_chain(width, right):
    # M = Theta^T Theta, Theta' = Theta B_u: Ito drift M B + B M + 2 sigma^2 h I
    h, k = 3, 2
    W, v, X, u, dW, dv = linear_net(h, k)
    Theta, drift = W.row_join(v), dW.row_join(dv)
    M = Theta.T * Theta
    push = X.T * u
    B = -sp.zeros(k, k).row_join(push).col_join(push.T.row_join(sp.zeros(1, 1)))
    assert (drift - Theta * B).expand() == sp.zeros(h, k + 1)
    ito = M.applyfunc(lambda e: s**2 * sum(sp.diff(e, p, 2) for p in Theta))
    mean = drift.T * Theta + Theta.T * drift + ito
    stated = M * B + B * M + 2 * width * s**2 * h * sp.eye(k + 1)
    assert ((mean - stated).expand() == sp.zeros(k + 1, k + 1)) == right


@pytest.mark.parametrize(("factor", "right"), [(1, True), (2, False)])
def test_noise_of_the_gram_matrix(factor, right):
    # d<M_ij, M_kl> = 2 sigma^2 (sum over the four pairings) / 1, as in section 8
    h, q = 2, 2
    Theta = sp.Matrix(h, q, lambda i, j: sp.Symbol(f"a{i}{j}", real=True))
    M = Theta.T * Theta

    def delta(a, b):
        return 1 if a == b else 0

    ok = True
    for i in range(q):
        for j in range(q):
            for k in range(q):
                for m in range(q):
                    true = 2 * sum(sp.diff(M[i, j], p) * sp.diff(M[k, m], p) for p in Theta)
                    stated = 2 * (
                        delta(i, k) * M[j, m]
                        + delta(i, m) * M[j, k]
                        + delta(j, k) * M[i, m]
                        + delta(j, m) * M[i, k]
                    )
                    ok &= sp.expand(true - factor * stated) == 0
    assert ok == right


@pytest.mark.parametrize(("factor", "right"), [(1, True), (0, False), (2, False)])
def test_second_moments_of_probing_with_batches(factor, right):
    # two samples with any kernel, K = 1: the residuals after a step on each of the four batches
    q, dt = sp.symbols("q dt", positive=True)
    G = sp.Matrix(2, 2, sp.symbols("g11 g12 g12 g22", real=True))
    r1, r2 = sp.symbols("r1 r2", real=True)
    r = sp.Matrix([r1, r2])
    moment = sp.zeros(2, 2)
    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        chance = (q if first else 1 - q) * (q if second else 1 - q)
        after = r - dt * G * sp.diag(first, second) * r / q
        moment += chance * after * after.T
    # the noise of the head is independent of both and adds 2 sigma^2 dt A A^T = 2 sigma^2 dt G
    contracted = (sp.eye(2) - dt * G) * (r * r.T) * (sp.eye(2) - dt * G)
    stated = contracted + factor * dt**2 * (1 - q) / q * G * sp.diag(r1**2, r2**2) * G
    assert ((moment - stated).applyfunc(sp.simplify) == sp.zeros(2, 2)) == right


@pytest.mark.parametrize(("power", "right"), [(2, True), (1, False)])
def test_weights_of_the_sampling_noise_rise_with_the_step(power, right):
    # of dt^2 N; rest is positive in the stable range, dt a < 2 and dt b < 2
    dt, a, b = sp.symbols("dt a b", positive=True)
    weight, rest = dt**2 * a * b / (1 - (1 - dt * a) * (1 - dt * b)), 1 / a + 1 / b - dt
    assert sp.simplify(weight - dt / rest) == 0
    assert (sp.simplify(sp.diff(weight, dt) - (1 / a + 1 / b) / rest**power) == 0) == right
