"""Synthetic data have the properties in their names; digits; users' files."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from langevin import (
    Problem,
    Schedule,
    Weights,
    class_ring,
    collapsed_features,
    digits,
    from_npz,
    gaussian_features,
    gaussian_gram,
    gaussian_head,
    linear_teacher,
    orthogonally_separable,
    prototype_head,
    zero_head,
    zeroth_order,
)


@pytest.mark.parametrize("seed", range(20))
def test_assumption_3_1_holds(seed):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(91, 180)
    limit = np.tan(np.radians(angle - 90) / 2)
    problem = orthogonally_separable(
        int(rng.integers(2, 60)), int(rng.integers(2, 20)), spread=0.999 * limit, angle=angle, rng=seed
    )
    G = problem.X @ problem.X.T
    same = np.equal.outer(problem.y, problem.y)
    assert (G[same] > 0).all()
    assert (G[~same] <= 1e-15).all()


@pytest.mark.parametrize("classes", [3, 4, 10])
@pytest.mark.parametrize("angle", [None, 91.0])
def test_the_assumptions_hold_for_several_classes(classes, angle):
    for seed in range(5):
        problem = orthogonally_separable(
            43, 11, classes=classes, angle=angle, loss="softmax", test_samples=5, rng=seed
        )
        assert problem.outputs_dim == classes
        counts = np.bincount(problem.y)
        assert counts.max() - counts.min() <= 1
        G = problem.X @ problem.X.T
        same = np.equal.outer(problem.y, problem.y)
        assert (G[same] > 0).all()
        assert (G[~same] <= 0).all()
        weights = collapsed_features(problem, 2 * classes + 1, spread=0.9, rng=seed)
        assert weights.outputs_dim == classes
        z = problem.X @ weights.W.T
        assert ((z > 0) == np.equal.outer(problem.y, np.arange(2 * classes + 1) % classes)).all()
        assert (z != 0).all()


def test_two_numbered_classes_are_those_of_labels():
    labelled, numbered = (orthogonally_separable(9, 4, loss=loss, rng=0) for loss in ("logistic", "ovr"))
    np.testing.assert_array_equal(labelled.X, numbered.X)
    np.testing.assert_array_equal(labelled.y, 2 * numbered.y - 1)


def test_classes_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="classes must be 2 with loss 'logistic', got 3"):
        orthogonally_separable(classes=3)
    with pytest.raises(ValueError, match="samples must be at least classes=5, got 4"):
        orthogonally_separable(4, classes=5, loss="softmax")
    with pytest.raises(ValueError, match="dim must be at least 4 for 5 classes, got 3"):
        orthogonally_separable(dim=3, classes=5, loss="softmax")
    with pytest.raises(ValueError, match=r"angle must lie in \(90, 109\.5\] degrees, got 110"):
        orthogonally_separable(classes=4, angle=110.0, loss="softmax")
    # an axis outside its cone: one class lies between the two others
    X = [[1.0, 0.0], [0.7, 0.7], [0.0, 1.0]]
    with pytest.raises(ValueError, match="problem must be orthogonally separable"):
        collapsed_features(Problem(X, [0, 1, 2], loss="softmax"), 3)


def test_heads_of_several_outputs():
    head = gaussian_head(4000, 0.3, outputs=3, rng=0)
    assert head.shape == (4000, 3)
    np.testing.assert_allclose(head.std(axis=0), 0.3, rtol=0.05)
    assert np.abs(np.corrcoef(head.T) - np.eye(3)).max() < 0.07
    assert zero_head(5, outputs=3).tolist() == [[0.0] * 3] * 5
    assert gaussian_head(5, rng=0).shape == zero_head(5).shape == (5,)
    problem = orthogonally_separable(12, 6, classes=3, loss="softmax", rng=0)
    W = gaussian_features(50, 6, rng=0)
    prototypes = prototype_head(problem, W, scale=0.2)
    assert np.sqrt((prototypes**2).mean()) == pytest.approx(0.2)
    np.testing.assert_allclose(prototypes.sum(axis=1), 0, atol=1e-12)
    # a class's own output is the largest on its samples
    assert (problem.outputs(Weights(W, prototypes)).argmax(axis=1) == problem.y).all()


def test_the_gram_matrix_of_several_outputs_has_the_law_of_neurons():
    problem = orthogonally_separable(6, 4, classes=3, activation="linear", loss="softmax", rng=0)
    h, draws = 7, 2000
    grams, neurons = np.empty((2, draws, 7, 7))
    for i in range(draws):
        drawn = gaussian_gram(problem, h, head_scale=0.5, rng=i)
        rows = np.column_stack([drawn.W, drawn.v])
        grams[i] = rows.T @ rows
        whole = np.column_stack([gaussian_features(h, 4, rng=i), gaussian_head(h, 0.5, outputs=3, rng=i)])
        neurons[i] = whole.T @ whole
    for moment in (1, 2):
        theirs, ours = neurons**moment, grams**moment
        error = np.sqrt((theirs.var(axis=0) + ours.var(axis=0)) / draws)
        assert (np.abs(theirs.mean(axis=0) - ours.mean(axis=0)) < 4.5 * error).all()
        # the control: a head of another size
        assert (np.abs(1.2**moment * theirs.mean(axis=0) - ours.mean(axis=0)) > 4.5 * error).any()


def test_a_larger_spread_violates_it():
    with pytest.raises(ValueError, match=r"spread must lie in \[0, 0\.4142\)"):
        orthogonally_separable(spread=0.42)
    with pytest.raises(ValueError, match="angle must lie in"):
        orthogonally_separable(angle=90.0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spread", [0.0, 0.5, 0.999])
def test_assumption_3_2_holds(seed, spread):
    problem = orthogonally_separable(30, 5, spread=0.4, rng=seed)
    weights = collapsed_features(problem, 11, spread=spread, rng=seed)
    z = weights.W @ problem.X.T
    s = np.where(np.arange(11) % 2 == 0, 1, -1)
    assert (np.sign(z) == np.outer(s, problem.y)).all()
    np.testing.assert_allclose(np.linalg.norm(weights.W, axis=1), 11**-0.5)
    if spread == 0:
        assert np.linalg.matrix_rank(weights.W) == 1


def test_collapsed_features_of_other_data_are_refused():
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((40, 3)), rng.choice([-1.0, 1.0], 40))
    with pytest.raises(ValueError, match="orthogonally separable"):
        collapsed_features(problem, 4)


def test_a_linear_head_learns_the_linear_teacher():
    problem = linear_teacher(200, 5, noise=0.1, rng=0)
    residual = problem.y - problem.X @ np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    assert residual.std() == pytest.approx(0.1, rel=0.15)
    assert problem.y.std() > 0.5


def test_heads():
    problem = orthogonally_separable(20, 6, rng=1)
    W = gaussian_features(400, 6, rng=0)
    assert np.linalg.norm(W, axis=1).mean() == pytest.approx(0.05, rel=0.1)
    assert (zero_head(3) == 0).all()
    assert gaussian_head(20_000, 0.3, rng=0).std() == pytest.approx(0.3, rel=0.03)
    prototype = prototype_head(problem, W, 0.2)
    assert np.sqrt((prototype**2).mean()) == pytest.approx(0.2)
    f = problem.features(W) @ prototype
    assert f[problem.y > 0].mean() > f[problem.y < 0].mean()
    with pytest.raises(ValueError, match="both classes"):
        prototype_head(Problem(problem.X, np.ones(20)), W)


def test_digits_start_from_learned_features(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    problem, weights = digits((3, 8), width=64)
    assert problem.dim == 64
    assert problem.X_test is not None
    assert len(problem.X_test) == pytest.approx(0.2 * (problem.samples + len(problem.X_test)), abs=1)
    # the features come from the public task: they separate even and odd digits faster than
    # with the random features that the pre-training started from, at equal mean square
    images, labels = load_digits(return_X_y=True)
    public = ~np.isin(labels, (3, 8))
    X = images[public] - images[public].mean(axis=0)
    task = Problem(X / np.sqrt((X**2).sum(axis=1).mean()), np.where(labels[public] % 2 == 0, 1.0, -1.0))

    def probed(W: np.ndarray) -> float:
        scale = np.sqrt((task.features(W) ** 2).sum(axis=1).mean())
        start = Weights(W / scale, np.zeros(len(W)))
        return float(zeroth_order(task, start, Schedule.lp(time=0.1), dt=1e-3, times=[0.1]).loss[0])

    assert probed(weights.W) < 0.8 * probed(gaussian_features(64, 64, scale=1.0, rng=0))
    # the second call reads the cache; a damaged cache is replaced
    (cached,) = (tmp_path / "private-finetuning-dynamics").glob("digits-*.npy")
    assert (digits((3, 8), width=64)[1].W == weights.W).all()
    cached.write_bytes(cached.read_bytes()[:1000])
    assert (digits((3, 8), width=64)[1].W == weights.W).all()
    assert (digits((3, 8), width=64, cache=False)[1].W == weights.W).all()


def test_digits_with_an_output_per_class():
    (labelled, scalar), (numbered, weights) = (
        digits((8, 3), 16, loss=loss) for loss in ("logistic", "softmax")
    )
    np.testing.assert_array_equal(labelled.X, numbered.X)
    np.testing.assert_array_equal(labelled.y, 2 * numbered.y - 1)
    np.testing.assert_array_equal(scalar.W, weights.W)
    assert numbered.class_names == ("8", "3")
    assert weights.v.shape == (16, 2)


@pytest.mark.parametrize("classes", [(7, 1, 4), (1, 3, 5, 7, 9, 0, 2, 4), tuple(range(10))], ids=len)
def test_digits_of_several_classes(classes):
    problem, weights = digits(classes, 8, loss="ovr", cache=False)
    labels = load_digits(return_X_y=True)[1]
    assert problem.class_names == tuple(map(str, classes))
    assert problem.y_test is not None
    found = np.bincount(np.concatenate([problem.y, problem.y_test]), minlength=len(classes))
    all_of_them = np.array([(labels == digit).sum() for digit in classes])
    share = found / all_of_them
    if len(classes) < 9:
        assert (share == 1).all()
    else:
        # four standard deviations
        assert abs(found.sum() / len(labels) - 0.75) < 4 * (0.75 * 0.25 / len(labels)) ** 0.5
    assert np.isfinite(weights.W).all()
    with pytest.raises(ValueError, match="classes must be two different digits with loss 'logistic'"):
        digits(classes)


def test_without_a_home_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    digits((3, 8), width=2)
    assert list(tmp_path.iterdir()) == []


def test_private_classes_do_not_affect_the_features_of_digits():
    """The scaling and the features come only from the other eight digits."""
    first = digits((3, 8), width=16, cache=False)[1].W
    second = digits((8, 3), width=16, cache=False)[1].W
    assert (first == second).all()
    with pytest.raises(ValueError, match="classes must be two different digits"):
        digits((3, 3))


def test_npz_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "X": rng.standard_normal((5, 3)),
        "y": np.array([1, -1, 1, -1, 1]),
        "W": rng.standard_normal((4, 3)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    problem, W, v = from_npz(tmp_path / "a.npz")
    assert (arrays["X"] == problem.X).all()
    assert W is not None
    assert (arrays["W"] == W).all()
    assert v is None


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "pickle", "pickled array", "no y", "text", "folder"]
)
def test_bad_files_are_refused_with_their_name(tmp_path, kind):
    path = tmp_path / "data.npz"
    good = {"X": np.ones((2, 2)), "y": np.array([1.0, -1.0])}
    if kind == "truncated":
        np.savez(path, **good)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "pickled array":
        np.savez(path, X=np.array([Malicious()], dtype=object), y=good["y"])
    elif kind == "no y":
        np.savez(path, X=good["X"])
    elif kind == "text":
        path.write_text("X,y\n1,2\n")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=r"data.*data\.npz"):
        from_npz(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", b"\0" * 1000)
    raw = bytearray(path.read_bytes())
    # claim 1 PiB in the central directory, as a 64-bit extra field would after real compression
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.infolist()[0].file_size = 2**50
        archive._didModify = True  # pyright: ignore[reportAttributeAccessIssue]
    assert path.read_bytes() != bytes(raw)
    with pytest.raises(MemoryError, match=r"data file .* GiB are free"):
        from_npz(path)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes_on_a_ring(classes):
    problem = class_ring(40, classes, spread=0.1, loss="softmax", test_samples=10, rng=1)
    assert np.bincount(problem.y).tolist() == [40 // classes + (k < 40 % classes) for k in range(classes)]
    means = np.array([problem.X[problem.y == k].mean(axis=0) for k in range(classes)])
    turns = np.sort(np.unwrap(np.sort(np.arctan2(means[:, 1], means[:, 0]))))
    # means of samples are off by at most the spread
    assert np.abs(np.diff(turns) - 2 * np.pi / classes).max() < 0.2
    assert np.linalg.norm(problem.X, axis=1).max() <= np.hypot(1, 0.1)
    assert problem.X_test is not None
    assert problem.X_test.shape == (10, 2)
    G, same = problem.X @ problem.X.T, np.equal.outer(problem.y, problem.y)
    # the extension of Assumption 3.1
    assert bool((G[same] > 0).all() and (G[~same] <= 0).all()) == (classes <= 3)


def test_rings_refuse_classes_that_meet():
    with pytest.raises(ValueError, match="spread must lie in"):
        class_ring(20, 6, spread=0.6)
    with pytest.raises(ValueError, match="classes must be 2 with loss 'logistic'"):
        class_ring(20, 3, loss="logistic")
