"""K outputs: losses, gradient norms and targets, against torch and against the scalar net they contain."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from langevin import GramWeights, Phase, Problem, Schedule, Weights
from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES, OMEGA
from langevin.model.problem import require_compatible

K = 3
ACTIVATE: dict[str, Any] = {
    "relu": torch.relu,
    "linear": lambda z: z,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}
# of one sample, written apart from the tables
LOSE: dict[str, Any] = {
    "softmax": lambda f, y: functional.cross_entropy(f, y),
    "ovr": lambda f, y: functional.binary_cross_entropy_with_logits(
        f, functional.one_hot(y, len(f)).double(), reduction="sum"
    ),
    "square": lambda f, y: 0.5 * ((f - y) ** 2).sum(),
    "huber": lambda f, y: functional.huber_loss(f, y, reduction="sum"),
    "logistic": lambda f, y: functional.softplus(-y * f).sum(),
}
CLASS_LOSSES = ["softmax", "ovr"]


def a_problem(loss: str, activation: str = "relu", outputs: int = K, n: int = 7, d: int = 4) -> Problem:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    if LOSSES[loss].classes:
        y: Any = np.arange(n) % outputs
    elif LOSSES[loss].signs:
        y = np.where(np.arange(n) % 2, 1.0, -1.0)
    else:
        y = 2 * rng.standard_normal(n if outputs == 1 else (n, outputs))
    return Problem(X, y, activation, loss)


def some_weights(outputs: int = K, h: int = 6, d: int = 4) -> Weights:
    rng = np.random.default_rng(1)
    return Weights(rng.standard_normal((h, d)), rng.standard_normal(h if outputs == 1 else (h, outputs)))


def per_sample(problem: Problem, weights: Weights, method: str) -> np.ndarray:
    """Losses and gradient norms, shape (2, n), from materialised gradients."""
    W = torch.tensor(weights.W, requires_grad=method == "fft")
    v = torch.tensor(weights.v, requires_grad=True)
    found = []
    for x, y in zip(torch.tensor(problem.X), torch.tensor(problem.y), strict=True):
        loss = LOSE[problem.loss](ACTIVATE[problem.activation](W @ x) @ v, y)
        trained = [p for p in (W, v) if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained)
        found.append([loss.item(), sum((g**2).sum() for g in gradients) ** 0.5])
    return np.array(found, dtype=float).T


@pytest.mark.parametrize("method", ["lp", "fft"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        *((loss, K) for loss in ("softmax", "ovr", "square", "huber")),
        *((s, 1) for s in ("square", "logistic")),
    ],
)
def test_losses_and_gradient_norms_are_those_of_autograd(loss, outputs, activation, method):
    problem, weights = a_problem(loss, activation, outputs), some_weights(outputs)
    losses, norms = per_sample(problem, weights, method)
    f = problem.outputs(weights)
    assert f.shape == ((7,) if outputs == 1 else (7, outputs))
    np.testing.assert_allclose(problem.losses(f), losses, rtol=1e-12)
    np.testing.assert_allclose(problem.gradient_norms(weights, method), norms, rtol=1e-12)
    # the norms of the other method differ
    other = problem.gradient_norms(weights, "fft" if method == "lp" else "lp")
    assert (np.abs(other - norms) > 1e-3).any()


def test_losses_and_residuals_broadcast_over_paths():
    for loss in ("softmax", "ovr", "square"):
        problem = a_problem(loss)
        F = np.random.default_rng(2).standard_normal((5, 2, 7, K))
        assert problem.losses(F).shape == (5, 2, 7)
        assert problem.residuals(F).shape == F.shape
        np.testing.assert_array_equal(problem.losses(F)[3, 1], problem.losses(F[3, 1]))
        np.testing.assert_array_equal(problem.residuals(F)[3, 1], problem.residuals(F[3, 1]))


def one_hot(outputs: int) -> np.ndarray:
    return np.eye(outputs)


@pytest.mark.parametrize("outputs", [2, 3, 10])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_what_a_loss_of_classes_says_of_itself(name, outputs):
    loss, Y = LOSSES[name], one_hot(outputs)
    rng = np.random.default_rng(3)
    F = rng.standard_normal((200, outputs, outputs)) * np.exp(rng.uniform(-3, 2, (200, 1, 1)))
    step = 1e-5
    for k in range(outputs):
        move = step * np.eye(outputs)[k]
        slope = (loss.value(F + move, Y) - loss.value(F - move, Y)) / (2 * step)
        np.testing.assert_allclose(loss.residual(F, Y)[..., k], slope, atol=1e-7)
        second = (loss.residual(F + move, Y) - loss.residual(F - move, Y)) / (2 * step)
        np.testing.assert_allclose(loss.curvature(F, Y)[..., k], second, atol=1e-7)
    # the constants hold, and are reached: smaller ones would not hold
    largest = np.linalg.eigvalsh(loss.curvature(F, Y)).max()
    assert largest <= loss.smoothness + 1e-12
    pair = np.where(np.arange(outputs) < 2, 0.0, -50.0)
    assert np.linalg.eigvalsh(loss.curvature(pair, Y[0])).max() == pytest.approx(loss.smoothness)
    steepest = loss.steepest(outputs)
    assert steepest is not None
    assert np.linalg.norm(loss.residual(F, Y), axis=-1).max() <= steepest
    wrong = 50.0 * (1 - 2 * Y[0]) if name == "ovr" else 50.0 * Y[1]
    assert np.linalg.norm(loss.residual(wrong, Y[0])) == pytest.approx(steepest)
    assert np.abs(loss.residual(F, Y)).max() <= loss.largest_residual


@pytest.mark.parametrize(("outputs", "omega"), [(2, 0.2785), (3, 0.4631), (10, 1.1010), (100, 2.629)])
def test_growth_is_attained(outputs, omega):
    Y = one_hot(outputs)
    assert LOSSES["softmax"].growth is not None
    assert LOSSES["ovr"].growth is not None
    assert LOSSES["softmax"].growth(Y) == pytest.approx(np.full(outputs, omega), abs=5e-4)
    assert LOSSES["ovr"].growth(Y) == pytest.approx(np.full(outputs, outputs * OMEGA))
    rng = np.random.default_rng(4)
    random = 2 * rng.standard_normal((2000, outputs))
    # equal outputs of the other classes, and equal sizes
    margins = np.linspace(0, 8, 4001)[:, None]
    for name, along in (("softmax", margins * Y[0]), ("ovr", margins * (2 * Y[0] - 1))):
        loss = LOSSES[name]
        assert loss.growth is not None
        bound = float(loss.growth(Y)[0])
        pulls = [(-F * loss.residual(F, Y[0])).sum(-1).max() for F in (random, along)]
        assert max(pulls) <= bound + 1e-12
        assert pulls[1] > bound - 1e-4


@pytest.mark.parametrize("size", [1e4, 1e8])
def test_losses_of_classes_are_stable(size):
    Y, F = one_hot(3), size * np.array([[1.0, 0.0, -1.0]] * 3)
    with np.errstate(all="raise", under="ignore"):
        for name in CLASS_LOSSES:
            loss = LOSSES[name]
            assert np.isfinite(loss.value(F, Y)).all()
            assert np.isfinite(loss.residual(F, Y)).all()
        np.testing.assert_allclose(LOSSES["softmax"].value(F, Y), [0, size, 2 * size])
        np.testing.assert_allclose(
            LOSSES["softmax"].residual(F, Y), [[0, 0, 0], [1, -1, 0], [1, 0, -1]], atol=1e-300
        )
        np.testing.assert_allclose(
            LOSSES["ovr"].residual(F, Y), [[0, 0.5, 0], [1, -0.5, 0], [1, 0.5, -1]], atol=1e-300
        )


def test_small_losses_keep_their_digits():
    """``log-sum-exp(f) - f_y`` would be 0 here."""
    F, y = np.array([[1e4, 1e4 - 40.0, 1e4 - 41.0]]), np.array([0])
    expected = np.exp(-40.0) + np.exp(-41.0)
    Y = one_hot(3)[y]
    assert LOSSES["softmax"].value(F, Y) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(
        LOSSES["softmax"].residual(F, Y), [[-expected, np.exp(-40.0), np.exp(-41.0)]], rtol=1e-12
    )


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_tensors_agree_with_arrays(name):
    loss, Y = LOSSES[name], one_hot(4)
    F = (
        np.random.default_rng(5).standard_normal((6, 4, 4))
        * np.array([1e-3, 1, 10, 1e3, 1e4, 1e8])[:, None, None]
    )
    tensors = torch.tensor(F), torch.tensor(Y)
    np.testing.assert_allclose(loss.tensor_value(*tensors), loss.value(F, Y), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(loss.tensor_residual(*tensors), loss.residual(F, Y), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("method", ["lp", "fft"])
def test_softmax_of_two_classes_is_the_scalar_net(method):
    """Head ``(V_1 - V_0) / sqrt(2)`` on inputs ``sqrt(2) x`` (theory for K outputs, section 0)."""
    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((9, 4)), np.arange(9) % 2
    weights = some_weights(2)
    two = Problem(X, y, loss="softmax")
    scalar = Weights(weights.W, (weights.v[:, 1] - weights.v[:, 0]) / np.sqrt(2))
    norms, losses = two.gradient_norms(weights, method), two.losses(two.outputs(weights))
    for factor, same in ((np.sqrt(2), True), (1.0, False)):
        one = Problem(factor * X, 2 * y - 1)
        assert np.allclose(one.gradient_norms(scalar, method), norms, rtol=1e-12) == same
        assert np.allclose(one.losses(one.outputs(scalar)), losses, rtol=1e-12) == same


# --- targets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "classes", "numbers", "names"),
    [
        ([2, 0, 1], None, [2, 0, 1], ("0", "1", "2")),
        ([2.0, 0.0, 1.0], None, [2, 0, 1], ("0", "1", "2")),
        (["b", "c", "a"], None, [1, 2, 0], ("a", "b", "c")),
        (["b", "c", "a"], ("c", "b", "a"), [1, 0, 2], ("c", "b", "a")),
        ([True, False, True], None, [1, 0, 1], ("False", "True")),
        ([True, False, True], (True, False), [0, 1, 0], ("True", "False")),
        ([1, 0, 1], ("cat", "dog"), [1, 0, 1], ("cat", "dog")),
    ],
)
@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_labels_become_class_numbers(y, classes, numbers, names, loss):
    X = np.eye(3)
    problem = Problem(X, y, loss=loss, X_test=X[:1], y_test=y[:1], classes=classes)
    assert problem.y.dtype == np.int64
    assert problem.y.tolist() == numbers
    assert problem.y_test is not None
    assert problem.y_test.tolist() == numbers[:1]
    assert (problem.class_names, problem.outputs_dim, problem.classification) == (names, len(names), True)
    np.testing.assert_array_equal(problem.targets, np.eye(len(names))[numbers])
    # the numbers of a problem give it again
    again = Problem(X, problem.y, loss=loss, classes=problem.class_names)
    assert again.y.tolist() == numbers
    assert again.class_names == names
    for array in (problem.y, problem.targets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_real_targets():
    y = np.arange(6.0).reshape(3, 2)
    problem = Problem(np.eye(3), y, loss="square", X_test=np.eye(3), y_test=y)
    assert (problem.outputs_dim, problem.class_names, problem.classification) == (2, (), False)
    np.testing.assert_array_equal(problem.targets, y)
    assert not Problem(np.eye(3), np.ones((3, 2)), loss="huber").classification
    scalar = Problem(np.eye(3), [1, -1, 1])
    assert (scalar.outputs_dim, scalar.targets.shape, scalar.class_names) == (1, (3, 1), ())


@pytest.mark.parametrize(
    ("y", "kinds", "message"),
    [
        ([0, 0, 0], {}, "y must hold at least two classes with loss 'softmax', got only '0'"),
        (["a", "a", "a"], {}, "y must hold at least two classes with loss 'softmax', got only 'a'"),
        ([0, 0, 0], {"loss": "ovr"}, "y must hold at least two classes with loss 'ovr'"),
        ([0, 0, 0], {"classes": ["a"]}, "y must hold at least two classes"),
        ([0, 2, 2], {}, r"y must hold samples of each of the 3 classes, got none of class 1 \('1'\)"),
        ([0, 10**9, 1], {}, "y must hold samples of each of the 4 classes, got none of class 2"),
        (["a", "b", "a"], {"classes": ["a", "b", "c"]}, r"got none of class 2 \('c'\)"),
        (["a", "b", "c"], {"classes": ["a", "b"]}, "y must hold the classes a, b, got 'c'"),
        ([0, 1, 2], {"classes": ["a", "b"]}, "y must hold class numbers 0 to 1, got 2 at index 2"),
        ([0, 1, 0.5], {}, "y must hold class numbers 0 to K - 1, got 0.5 at index 2"),
        ([-1, 1, 1], {}, "y must hold class numbers 0 to K - 1, got -1 at index 0"),
        ([0, 1, np.nan], {}, "y must hold a label for each sample, got nan at index 2"),
        ([[0, 1], [1, 0], [0, 1]], {}, r"y must be one row of numbers or text, got shape \(3, 2\)"),
        ([0, 1], {}, "X and y must have the same length"),
        ([0, 1, 1], {"classes": ["a", "a"]}, "classes must differ from each other, got 'a' twice"),
        (
            [1, -1, 1],
            {"loss": "logistic", "classes": ["a", "b"]},
            "classes must be left out with loss 'logistic'",
        ),
        ([[1, -1]] * 3, {"loss": "logistic"}, "y must have 1 dimension"),
        (
            [[1.0]] * 3,
            {"loss": "square"},
            r"y must have shape \(n,\) for one target per sample, got \(3, 1\)",
        ),
        ([0, 1, 1], {"y_test": [2]}, "y_test must hold class numbers 0 to 1, got 2 at index 0"),
        (["a", "b", "b"], {"y_test": ["c"]}, "y_test must hold classes of y, a, b, got c"),
        (["a", "b", "b"], {"y_test": [1]}, "y_test must hold names of classes as y does"),
        ([[1.0, 2.0]] * 3, {"loss": "square", "y_test": [1.0]}, "y_test must have as many columns as y"),
    ],
)
def test_targets_are_refused_by_name(y, kinds, message):
    kinds = {"loss": "softmax"} | kinds
    if "y_test" in kinds:
        kinds["X_test"] = np.eye(3)[:1]
    with pytest.raises(ValueError, match=message):
        Problem(np.eye(3), y, **kinds)


# --- weights, and what fits together ---------------------------------------------------------


def test_weights_of_several_outputs():
    weights = some_weights(K)
    assert (weights.outputs_dim, weights.trained_parameters("lp"), weights.trained_parameters("fft")) == (
        3,
        18,
        42,
    )
    assert some_weights(1).outputs_dim == 1
    with pytest.raises(ValueError, match=r"v must have shape \(h,\) for one output, got \(2, 1\)"):
        Weights(np.eye(2), [[1.0], [2.0]])
    with pytest.raises(ValueError, match="W and v must have the same length"):
        Weights(np.eye(2), np.ones((3, 2)))


@pytest.mark.parametrize("outputs", [1, K])
def test_the_gram_matrix_of_rows_is_kept(outputs):
    weights = some_weights(outputs, h=40)
    gram = GramWeights.from_rows(weights.W, weights.v)
    assert (gram.width, gram.outputs_dim, gram.v.shape[1:]) == (40, outputs, weights.v.shape[1:])
    whole, rows = np.column_stack([weights.W, weights.v]), np.column_stack([gram.W, gram.v])
    np.testing.assert_allclose(rows.T @ rows, whole.T @ whole, atol=1e-12)
    problem = a_problem("softmax" if outputs > 1 else "logistic", "linear", outputs)
    np.testing.assert_allclose(
        problem.gradient_norms(gram, "fft"), problem.gradient_norms(weights, "fft"), rtol=1e-10
    )
    with pytest.raises(ValueError, match="W and v must have shapes"):
        GramWeights.from_rows(np.eye(2), np.ones((3, 2)))


def test_heads_and_schedules_that_do_not_fit_are_refused():
    problem, margin = a_problem("softmax"), Schedule.lp(time=1.0, clip=1.0, clipping="margin")
    column = Schedule.lp(time=1.0, clip=1.0, clipping="column")
    require_compatible(problem, some_weights(), margin)
    require_compatible(a_problem("ovr"), some_weights(), column)
    with pytest.raises(ValueError, match=r"weights.v must have shape \(h, K=3\)"):
        require_compatible(problem, some_weights(1))
    with pytest.raises(ValueError, match=r"weights.v must have shape \(h,\) for this problem with 1 output"):
        require_compatible(a_problem("square", outputs=1), some_weights())
    with pytest.raises(ValueError, match="got 'column', which is defined for loss 'ovr'"):
        require_compatible(problem, some_weights(), column)
    with pytest.raises(
        ValueError, match="with loss 'ovr', got 'margin', which is defined for loss 'softmax'"
    ):
        require_compatible(a_problem("ovr"), some_weights(), margin)
    require_compatible(problem, some_weights(), Schedule.lp(time=1.0, sample_rate=1 / 7))
    with pytest.raises(
        ValueError, match=r"sample_rate must be at least 1/n = 0\.143 for 7 samples, got 0\.1"
    ):
        require_compatible(
            problem, some_weights(), Schedule([Phase("lp", 1.0), Phase("fft", 1.0, sample_rate=0.1)])
        )
