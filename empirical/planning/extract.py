"""What a plan needs of a task and its body: inputs of the last layer, and that layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from empirical.data.images import Part, normalised
from empirical.networks.bodies import scale_of
from empirical.networks.embed import embed
from empirical.networks.last_layer import LastLayer, last_layer

if TYPE_CHECKING:
    from torch import nn

    from empirical.data.images import Images
    from empirical.studies.setting import Setting

# images by which a layer is compared with the body, and relative distance that is worth a note
_COMPARED, _FAR = 256, 0.01


@dataclass(frozen=True, eq=False)
class Extracted:
    """Arguments of `plan_share` that a task and its body determine.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        ``X`` and ``y`` of the public part, ``W`` where the body's last layer can be read, and for a private
        plan ``X_test`` and ``y_test`` of the private training images.
    samples : int
        Private training images.
    notes : tuple of str
        What was taken, and how well the layer stands for the body.
    """

    arrays: dict[str, Any]
    samples: int
    notes: tuple[str, ...]


def extract(setting: Setting, seed: int = 0, *, private: bool = False) -> Extracted:
    """Extract what a plan needs from the *public* part of a task.

    Parameters
    ----------
    setting : Setting
        Of a task with a public part, whose images are those that the plan is read off.
    seed : int
        Of split and body.
    private : bool
        Also take the private training images, as the held-out rows of a private plan.

    Raises
    ------
    ValueError
        If the task has no public part, or its data are a file.

    Examples
    --------
    >>> from empirical import Setting
    >>> found = extract(Setting("digits", epochs=1))
    >>> found.arrays["X"].shape, found.arrays["W"].shape, found.samples
    ((400, 129), (64, 129), 1097)
    """
    if setting.is_file:
        raise ValueError(f"data must be images, got {setting.data!r}: give the file itself as FILE")
    task = setting.task(seed)
    if task.public is None:
        raise ValueError(
            f"data={setting.data!r} must have a public part, as a plan read off private images is a release: "
            "name public_classes or public_share, or write features of public data to a file"
        )
    body = setting.network(seed).to(setting.device)
    try:
        layer = last_layer(body)
    except TypeError as error:
        return _extracted(body, None, task, private, (f"full fine-tuning is guessed: {error}",))
    return _extracted(body, layer, task, private, ())


def _extracted(
    body: nn.Module, layer: LastLayer | None, task: Images, private: bool, notes: tuple[str, ...]
) -> Extracted:
    def seen(part: Part) -> np.ndarray:
        images = normalised(part.images, *scale_of(body, task))
        return embed(body, images) if layer is None else layer.inputs(images)

    def names(part: Part) -> np.ndarray:
        return np.array(part.classes)[part.labels]

    assert task.public is not None
    arrays: dict[str, Any] = {"X": seen(task.public), "y": names(task.public)}
    notes = (f"from {len(task.public)} public images", *notes)
    if private:
        arrays |= {"X_test": seen(task.train), "y_test": names(task.train)}
    if layer is None:
        active = np.ptp(arrays["X"], axis=0) > 0
        arrays |= {name: arrays[name][:, active] for name in ("X", "X_test") if name in arrays}
        return Extracted(arrays, len(task.train), notes)
    arrays |= {"W": layer.W, "activation": layer.activation}
    some = normalised(task.public.images[:_COMPARED], *scale_of(body, task))
    if (far := layer.departure(body, some)) > _FAR:
        notes += (f"the layer that is simulated differs from the body's features by {far:.0%} in norm",)
    return Extracted(arrays, len(task.train), notes)
