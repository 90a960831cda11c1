"""Kept features: which are computed, and what happens to entries that cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

import empirical  # noqa: E402
from empirical.networks import frozen  # noqa: E402

# of a pass, large enough for any number of images to be worth keeping
SLOW = frozen._WORTH


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "private-finetuning-dynamics" / "features"


def body_of(seed: int = 0) -> nn.Module:
    return empirical.mlp((1, 4, 4), (5,), rng=seed).eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class Counting:
    """Computes features, and counts the images; a probe is one of them."""

    def __init__(self, body: nn.Module) -> None:
        self.body, self.images = body, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.images += len(x)
        with torch.no_grad():
            return self.body(x)


def features(body: nn.Module, x: Tensor, **options: Any) -> tuple[np.ndarray, int]:
    """Features, and the number of images that they took besides the probe."""
    compute = Counting(body)
    found = frozen.features(body, x, compute, **{"kept": SLOW, **options})
    with torch.no_grad():
        torch.testing.assert_close(found, body(x))
    return found.numpy(), compute.images - 1


def test_features_are_computed_once_whatever_the_split(folder: Path) -> None:
    body, x = body_of(), images(12)
    first, count = features(body, x[:8])
    assert count == 8
    assert len(list(folder.iterdir())) == 1
    # another order and subset of the same images
    again, count = features(body, x[[5, 1, 1]])
    assert count == 0
    np.testing.assert_array_equal(again, first[[5, 1, 1]])
    # those that are new are added
    assert features(body, x[4:])[1] == 4
    assert features(body, x)[1] == 0
    assert len(list(folder.iterdir())) == 1
    # for its owner alone
    assert folder.stat().st_mode & 0o077 == 0


def test_other_weights_shapes_and_precisions_have_entries_of_their_own(folder: Path) -> None:
    x = images(4)
    features(body_of(), x)
    assert features(body_of(1), x)[1] == 4
    assert features(body_of(), x, about="mixed")[1] == 4
    assert features(body_of(), x.reshape(4, 1, 2, 8))[1] == 4
    assert features(body_of(), images(4, 1))[1] == 4
    assert len(list(folder.iterdir())) == 4
    assert features(body_of(), x)[1] == 0


def test_a_body_that_hides_its_difference_is_told_by_its_features() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3)
            nn.init.constant_(self.layer.weight, 0.1)
            nn.init.zeros_(self.layer.bias)
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * self.layer(x.flatten(1))

    x = images(5)
    features(Scaled(1.0), x)
    # the same weights and layers
    assert features(Scaled(2.0), x)[1] == 5
    assert features(Scaled(2.0), x)[1] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, names=np.zeros(3)),
    ],
)
def test_damaged_entries_are_computed_again(folder: Path, damage: Callable[[Path], object]) -> None:
    body, x = body_of(), images(6)
    features(body, x)
    (entry,) = folder.iterdir()
    damage(entry)
    with pytest.warns(UserWarning, match="are damaged: computing them again"):
        assert features(body, x)[1] == 6
    assert features(body, x)[1] == 0


def test_an_entry_with_other_numbers_is_told_by_its_digest(folder: Path) -> None:
    body, x = body_of(), images(6)
    features(body, x)
    (entry,) = folder.iterdir()
    with np.load(entry) as stored:
        arrays = dict(stored)
    arrays["rows"][2, 1] += 0.5
    np.savez(entry, **arrays)
    with pytest.warns(UserWarning, match="are damaged"):
        assert features(body, x)[1] == 6


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(folder: Path) -> None:
    # root may write anywhere, but not into a file
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with pytest.warns(UserWarning, match=r"features are not kept, as .* XDG_CACHE_HOME"):
        assert features(body_of(), images(4))[1] == 4


def test_what_is_read_alone_leaves_nothing(folder: Path) -> None:
    assert features(body_of(), images(4), write=False)[1] == 4
    assert not folder.exists()


def test_fast_work_is_not_kept(folder: Path) -> None:
    compute = Counting(body_of())
    frozen.features(compute.body, images(4), compute, kept=SLOW // 5)
    assert compute.images == 4
    assert not folder.exists()


def test_a_grid_of_probing_computes_features_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = empirical.digits(rng=0).subsample(train=8, test=4)
    body, passed = empirical.mlp(whole.train.shape, (6,)), []
    plain = frozen.features

    def slow(body: nn.Module, x: Tensor, compute: Any, *, kept: int, **options: Any) -> Tensor:
        def counted(some: Tensor) -> Tensor:
            passed.append(len(some))
            return compute(some)

        return plain(body, x, counted, kept=SLOW, **options)

    def run(method: str, evaluations: int) -> Any:
        passed.clear()
        recipe = empirical.Recipe(method, steps=6, batch=20, lr=0.5)  # type: ignore[arg-type]
        tuning = empirical.FineTuning(whole, body, recipe, evaluations=evaluations)
        return tuning.run(), sum(passed)

    monkeypatch.setattr(frozen, "features", slow)
    first, count = run("lp", 3)
    # both parts once, whatever the number of evaluations, and two probes
    assert count == 80 + 40 + 2
    again, count = run("lp", 6)
    assert count == 2
    np.testing.assert_array_equal(first.test_loss[-1], again.test_loss[-1])
    # a body that trains leaves no features of its trained states
    full, count = run("fft", 2)
    assert count == 2
    assert len(list(folder.iterdir())) == 1
    monkeypatch.undo()
    np.testing.assert_array_equal(run("fft", 2)[0].test_loss, full.test_loss)
