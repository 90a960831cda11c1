"""Own classes, aligned cones and distances to them, against definitions written apart."""

import numpy as np
import pytest
from scipy.optimize import nnls

from langevin import Problem, collapsed_features, gaussian_head, orthogonally_separable
from langevin.model.alignment import cone_distance, head_excess, own_class

SIZES = [2, 3, 5, 10]


def classes(K: int, loss: str) -> Problem:
    """A problem whose data do not matter."""
    return Problem(np.eye(K), np.arange(K), loss=loss)


def normals(K: int, loss: str, own: int) -> np.ndarray:
    """Rows ``a`` of the aligned cone ``{V: a . V <= 0}``."""
    unit = np.eye(K)
    if loss == "softmax":
        return np.delete(unit - unit[own], own, axis=0)
    unit[own] *= -1
    return unit


def heads(K: int) -> tuple[np.ndarray, np.ndarray]:
    """Random heads, and some with equal numbers, small ones, and of every own class."""
    rng = np.random.default_rng(K)
    own = np.arange(100) % K
    V = rng.standard_normal((100, K)) * 10.0 ** rng.uniform(-3, 3, (100, 1))
    V[::9] = np.round(V[::9])
    V[::17] = 0.0
    V[np.arange(100), own] += rng.choice([0.0, 2.0], 100)
    return V, own


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_the_distance_is_that_of_a_projection(loss, K):
    """By Moreau the distance from a cone is the norm of the projection on its polar, by least squares."""
    V, own = heads(K)
    found, excess = cone_distance(classes(K, loss), V, own), head_excess(classes(K, loss), V, own)
    exact = [nnls(normals(K, loss, c).T, v) for v, c in zip(V, own, strict=True)]
    polar = [normals(K, loss, c).T @ weights for (weights, _), c in zip(exact, own, strict=True)]
    np.testing.assert_allclose(found, np.linalg.norm(polar, axis=1), rtol=1e-10, atol=1e-13)
    # what sets heads apart is the sign of each condition, to the last bit
    conditions = [np.sort(normals(K, loss, c) @ v) for v, c in zip(V, own, strict=True)]
    np.testing.assert_allclose(np.sort(excess, axis=1), conditions, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal((excess > 0).any(axis=1), found > 0)
    assert 0 < (found > 0).sum() < len(V)
    # negative control: to lower the others alone, without raising the own class, is a longer way
    control = np.linalg.norm(np.maximum(excess, 0), axis=1)
    misaligned = found > 0
    if loss == "softmax":
        assert (control[misaligned] > 1.01 * found[misaligned]).all()


def test_two_classes_are_the_equivalent_net_of_one_output():
    V, own = heads(2)
    v, sign = (V[:, 1] - V[:, 0]) / np.sqrt(2), 2 * own - 1
    expected = np.where(sign * v < 0, abs(v), 0)
    np.testing.assert_allclose(cone_distance(classes(2, "softmax"), V, own), expected, rtol=1e-14)
    scalar = Problem(np.eye(2), [-1, 1])
    np.testing.assert_array_equal(cone_distance(scalar, v, sign), expected)
    assert ((head_excess(scalar, v, sign) > 0)[:, 0] == (expected > 0)).all()
    assert (expected > 0).any()
    # negative control: without the root
    assert abs(cone_distance(classes(2, "softmax"), V, own) - np.sqrt(2) * expected).max() > 0.1


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_heads_on_the_boundary_are_aligned(loss):
    own = np.array([0, 2, 1])
    for V in (
        np.zeros((3, 3)),
        0.1 * (np.arange(3) == own[:, None]),
        np.full((3, 3), 0.1 * (loss == "softmax")),
    ):
        assert (cone_distance(classes(3, loss), V, own) == 0).all()
        assert not (head_excess(classes(3, loss), V, own) > 0).any()


@pytest.mark.parametrize("K", SIZES)
def test_gaussian_heads_are_as_often_misaligned_as_theory_says(K):
    """Wholly with probability 1/K, or 2^-K one-vs-rest; in the cone with 1/K, or 2^-K."""
    h = 200_000
    own = np.arange(h) % K
    V = gaussian_head(h, 1.0, outputs=K, rng=1)
    for loss, chance in (("softmax", 1 / K), ("ovr", 2.0**-K)):
        excess = head_excess(classes(K, loss), V, own)
        error = (chance * (1 - chance) / h) ** 0.5
        for share in ((excess > 0).all(axis=1).mean(), (excess <= 0).all(axis=1).mean()):
            assert abs(share - chance) < 4 * error
            # negative control: one class more
            assert abs(share - (1 / (K + 1) if loss == "softmax" else 2.0 ** -(K + 1))) > 4 * error


@pytest.mark.parametrize("K", [3, 4])
def test_the_own_class_is_that_of_the_cone(K):
    problem = orthogonally_separable(20, 6, classes=K, loss="softmax", rng=1)
    W = collapsed_features(problem, 13, rng=1).W
    z = problem.X @ W.T
    cones = [next(c for c in range(K) if ((z[:, j] > 0) == (problem.y == c)).all()) for j in range(13)]
    assert own_class(problem, W).tolist() == cones
    assert len(set(cones)) == K


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
@pytest.mark.parametrize("K", [2, 5])
def test_the_own_class_responds_most_on_average(activation, K):
    rng = np.random.default_rng(K)
    y = np.concatenate([np.arange(K), rng.integers(K, size=20)])
    problem = Problem(rng.standard_normal((len(y), 4)), y, activation, "ovr")
    W = rng.standard_normal((30, 4))
    phi = {"relu": lambda z: max(z, 0.0), "tanh": np.tanh, "linear": lambda z: z}[activation]
    for w, found in zip(W, own_class(problem, W), strict=True):
        responses = [np.mean([phi(w @ x) for x in problem.X[y == c]]) for c in range(K)]
        assert found == np.argmax(responses)
    # two classes are the labels -1 and +1
    if K == 2:
        signs = Problem(problem.X, 2 * y - 1, activation)
        assert (own_class(signs, W) == 2 * own_class(problem, W) - 1).all()


def test_a_neuron_without_a_response_is_of_the_first_class_or_of_plus_one():
    X = [[1.0, 0.0], [1.0, 1.0]]
    assert own_class(Problem(X, [1, 0], loss="softmax"), -np.ones((1, 2))).tolist() == [0]
    assert own_class(Problem(X, [1, -1]), -np.ones((1, 2))).tolist() == [1.0]


def test_targets_without_classes_have_neither():
    for y in ([0.5, 1.0, 2.0], np.eye(3)):
        problem = Problem(np.eye(3), y, loss="square")
        with pytest.raises(ValueError, match="for aligned cones, got loss 'square' with other targets"):
            cone_distance(problem, np.ones(3), np.ones(3))
        with pytest.raises(ValueError, match="for the own class of a neuron, got loss 'square' with other"):
            own_class(problem, np.eye(3))
    # labels -1 and +1 have, with any loss
    assert cone_distance(
        Problem(np.eye(2), [1, -1], loss="square"), np.ones(2), np.array([1, -1])
    ).tolist() == [0, 1]
