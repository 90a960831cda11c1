"""Accuracy of each class at each evaluation, and confusions at the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import xarray as xr


class ByClass:
    """Records over the test images, for the dataset of a run.

    Parameters
    ----------
    classes : sequence of str
    evaluations : int

    Examples
    --------
    >>> import torch
    >>> records = ByClass(["cat", "dog"], 1)
    >>> records.add(0, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    >>> records.variables()["confusion"][1].tolist()
    [[1, 1], [0, 1]]
    """

    def __init__(self, classes: Sequence[str], evaluations: int) -> None:
        # names of folders may hold what no file of results can
        self._names = [
            name.encode("utf8", "backslashreplace").decode().replace("\0", "\\0") for name in classes
        ]
        self._accuracy = np.full((evaluations, len(classes)), np.nan)
        self._confusion = np.zeros((len(classes), len(classes)), np.int32)

    def add(self, place: int, labels: Tensor, predicted: Tensor) -> None:
        """Record the evaluation of number ``place``."""
        count = len(self._names)
        pairs = (labels * count + predicted).cpu().numpy()
        self._confusion = np.bincount(pairs, minlength=count**2).reshape(count, count).astype(np.int32)
        of_class = self._confusion.sum(axis=1)
        right = np.diagonal(self._confusion)
        self._accuracy[place] = np.divide(right, of_class, np.full(count, np.nan), where=of_class > 0)

    def variables(self) -> dict[str, tuple[Any, ...]]:
        """Variables for a dataset."""
        accuracy = "share of a class's test images classified correctly"
        confusion = "test images of each true class by predicted class, at the last evaluation"
        return {
            "class_accuracy": (("step", "class"), self._accuracy, {"long_name": accuracy, "units": "1"}),
            "confusion": (("class", "predicted"), self._confusion, {"long_name": confusion, "units": "1"}),
        }

    def coordinates(self) -> dict[str, tuple[Any, ...]]:
        """Names of the classes, for a dataset."""
        return {
            "class": ("class", self._names, {"long_name": "class"}),
            "predicted": ("predicted", self._names, {"long_name": "class that was predicted"}),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """State, for a checkpoint."""
        return {"class_accuracy": self._accuracy, "confusion": self._confusion}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state from a checkpoint; those of earlier versions have none."""
        if "confusion" in arrays:
            self._accuracy, self._confusion = arrays["class_accuracy"], arrays["confusion"]


def mistakes(run: xr.Dataset, most: int) -> list[dict[str, Any]]:
    """The most common confusions of the last evaluation.

    Parameters
    ----------
    run : Dataset
    most : int
        How many of them.

    Returns
    -------
    list of dict
        With the keys "class", "taken for" and "images", the most common first.
    """
    wrong = run.confusion.values.copy()
    np.fill_diagonal(wrong, 0)
    names = run["class"].values
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = [np.unravel_index(place, wrong.shape) for place in order]
    return [
        {"class": str(names[i]), "taken for": str(names[j]), "images": int(wrong[i, j])}
        for i, j in found
        if wrong[i, j]
    ]
