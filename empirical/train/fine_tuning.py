"""Fine-tune a pre-trained network with DP-SGD, in stages, on one privacy budget."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from empirical.data.images import Images
from empirical.data.rows import Rows
from empirical.devices import ambient
from empirical.devices.parallel import Group, place
from empirical.networks.bodies import eager
from empirical.networks.checked import Checked
from empirical.recipe import Engine, Recipe
from empirical.train.checkpoint import Checkpoint, digest
from empirical.train.gradients import trial
from empirical.train.losses import CrossEntropy
from empirical.train.network import Network
from empirical.train.record import EVALUATIONS as EVALUATIONS
from empirical.train.record import Record
from empirical.train.run_options import RunOptions as RunOptions
from empirical.train.stage import Stages
from empirical.train.step import Stepper
from empirical.train.streams import Streams
from langevin.solvers.errors import Diverged
from langevin.store import errors
from langevin.support.signals import Deferred

if TYPE_CHECKING:
    import xarray as xr

_AUTOSAVE_SECONDS = 60.0


def finetune(
    task: Images,
    body: nn.Module,
    recipe: Recipe,
    options: RunOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **fields: Any,
) -> xr.Dataset:
    """Fine-tune a pre-trained body with a new head on a private task.

    Parameters
    ----------
    task : Images
        Normalised as the body's attribute ``scale`` says, or else by the public part; without either,
        intensities become ``2 x - 1``.
    body : nn.Module
        Maps images to ``body.features`` features. It is copied, and the copy is made fit for DP-SGD by
        `make_private`. A compiled body is used uncompiled; a scripted or traced one is refused.
    recipe : Recipe
    options : RunOptions, optional
        Seed, device, precision, evaluations, checkpoint.
    progress : callable, optional
        Called with the number of steps done and of all.
    **fields
        Fields of `RunOptions`, which replace those of ``options``: ``rng=1`` or ``device="cuda"``.

    Returns
    -------
    xarray.Dataset
        Over ``step``, the number of steps before an evaluation: test and training accuracy and loss, and what
        ``watch`` measures; the test accuracy of each class, and the confusions of the last evaluation. Over
        ``update``, each step's batch, clip rate, mean gradient norm and signal-to-noise ratio. The attributes
        hold the recipe and the history to account for. Everything except the test figures is computed from
        private data without noise: for research, not for release.

    Raises
    ------
    ValueError, TypeError
        On arguments that do not fit together, or a body that DP-SGD cannot train.
    Diverged
        If a weight is no longer finite; ``run`` holds what was recorded.
    LedgerError, StoreError
        If the ledger or the checkpoint cannot be written or trusted.

    Notes
    -----
    Probing works on features that are computed once, and in closed form. Dropout is always off.

    The same seed gives the same run to the last bit with the same number of torch threads. With another
    number, sums are rounded in another order, and weights differ by about 5e-7.

    Torch's modes (gradients, default precision and device, autocasting) and its random state have no effect
    on a run and are left as they were. `FineTuning` also keeps the trained network.

    Examples
    --------
    >>> from empirical import digits, mlp, Recipe
    >>> from empirical.train.fine_tuning import finetune
    >>> task = digits()
    >>> run = finetune(task, mlp(task.train.shape, (64,)), Recipe("lp", steps=20, lr=2.0), rng=0)
    >>> run.test_accuracy.sizes
    Frozen({'step': 11})
    """
    return FineTuning(task, body, recipe, options, **fields).run(progress)


class FineTuning:
    """One fine-tuning, which keeps the network after `run`; see `finetune` for the parameters.

    Attributes
    ----------
    model : Classifier
        Body and head, in their present state, on images normalised as ``(x - mean) / std``.
    classes : tuple of str
        In the order of the model's outputs.
    mean, std : ndarray, shape (channels,)
        By which images are normalised, see `empirical.networks.bodies.scale_of`.

    See Also
    --------
    empirical.save : Keeps the model in a file.

    Examples
    --------
    >>> from empirical import digits, mlp
    >>> task = digits()
    >>> tuning = FineTuning(task, mlp(task.train.shape, (64,)), Recipe("lp", steps=20, lr=2.0))
    >>> run = tuning.run()
    >>> tuning.model(torch.from_numpy(task.normalised(task.test))).shape
    torch.Size([300, 10])
    """

    @ambient.ordinary()
    def __init__(
        self,
        task: Images,
        body: nn.Module,
        recipe: Recipe,
        options: RunOptions | None = None,
        **fields: Any,
    ) -> None:
        options = replace(options or RunOptions(), **fields)
        body = eager(body)
        if not isinstance(recipe, Recipe):
            raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
        device = place(options.device)
        self._recipe, self._options = recipe, options
        self._history = recipe.history(len(task.train))
        self._loss = CrossEntropy()
        self._group = Group()
        checked = options.checked or Checked()
        mixed = options.precision == "mixed"
        network = self._network = Network(task, body, recipe, device, mixed=mixed, checked=checked)
        self._group.synchronise(network.model)
        # before anything is claimed or written; without clipping there is nothing to hold to it
        self._engines: dict[str, Engine] = self._group.agreed(self._chosen(task, body, checked))
        self.model, self.mean, self.std = network.model, network.mean, network.std
        self.classes, self._shape = task.train.classes, task.train.shape
        self._inputs = "features" if isinstance(task.train, Rows) else "images"

        self._streams = Streams(options.rng, device)
        self._streams.key = self._group.agreed(self._streams.key)
        self._stages = Stages(
            network, recipe, self._streams, engines=self._engines, loss=self._loss, chunk=options.chunk
        )
        self._stepper = Stepper(network, recipe, self._history, self._streams, self._group)
        steps = len(self._stages.slots)
        self._blocks = np.unique(np.rint(np.linspace(0, steps, options.evaluations + 1)).astype(int)).tolist()
        self._stops = np.array(self._blocks[not options.initial :])
        self._record = Record(self._stops, self._stages.slots, self.classes, device)
        self._done, self._saved_at = 0, time.monotonic()
        self._all_lost = torch.zeros((), dtype=torch.bool)
        self._config = {
            "recipe": json.loads(json.dumps(recipe.as_dict())),
            "task": digest(task.train.images, task.train.labels, task.test.images, task.test.labels),
            "body": digest(*(v.detach().cpu().numpy() for v in body.state_dict().values())),
            "evaluations": self._stops.tolist(),
            "device": device.type,
            "precision": options.precision,
        }
        self._checkpoint = self._opened()

    def _chosen(self, task: Images, body: nn.Module, checked: Checked) -> dict[str, Engine]:
        """The engine of each stage, by the stage's name."""
        recipe, network = self._recipe, self._network
        if recipe.clip is None:
            return {}
        tried = trial.images(task, body)
        phases = tuple((stage.name, stage.subset) for stage in recipe.phases)
        about = "engines", phases, recipe.engine, recipe.rank, len(task.train.classes), network.about(tried)

        def choose() -> dict[str, Engine]:
            found = trial.choose_all(network.model, recipe, self._loss, tried.to(network.device))
            return {name: choice.kind for name, choice in found.items()}

        return dict(checked.once(body, about, choose))

    def _opened(self) -> Checkpoint | None:
        """The checkpoint, from which the state is taken if the run is to resume."""
        path = self._options.checkpoint
        if not path:
            return None
        checkpoint = Checkpoint(path, self._config, self._history, owner=self.first)
        if self._options.resume:
            self._restore(checkpoint)
            return checkpoint
        # only the first can tell: another that looks later may find what the first has written since
        existing = self._group.agreed(checkpoint.existing())
        if existing is not None:
            raise errors.StoreError(
                f"checkpoint {str(existing)!r} already exists: resume it, or start the run under another path"
            )
        return checkpoint

    def record(self) -> dict[str, Any]:
        """Return what is saved with `model`: classes, normalisation, recipe and privacy record."""
        fresh = self._options.rng is None
        return {
            "classes": list(self.classes),
            "inputs": self._inputs,
            "shape": list(self._shape),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "rank": self._recipe.rank if self._network.adapted else None,
            "recipe": self._recipe.as_dict(),
            "history": self._history.as_dict(),
            "noise": "from entropy that the model does not hold" if fresh else "from a seed",
        }

    @property
    def first(self) -> bool:
        """Whether this process evaluates and keeps records; of several that train together, one does."""
        return self._group.rank == 0

    @ambient.ordinary()
    def run(self, progress: Callable[[int, int], None] | None = None) -> xr.Dataset:
        """Train to the end from the current step."""
        try:
            return self._run(progress)
        finally:
            if self._checkpoint is not None:
                self._checkpoint.close()

    def _run(self, progress: Callable[[int, int], None] | None) -> xr.Dataset:
        begun = self._done
        if begun == 0 and not self._record.begun:
            # so that whatever happens from here on, there is something to resume
            self._save()
            self._initial_head()
            # sums over images may be rounded otherwise on another GPU
            self._group.synchronise(self.model)
            if self._options.initial:
                self._evaluate(0)
                self._save()
        names = [slot.stage.name for slot in self._stages.slots]
        for first, last in itertools.pairwise(self._blocks):
            if last <= begun:
                continue
            # a signal waits for the step in flight, or for the evaluation
            with Deferred() as signals:
                if self._checkpoint is not None:
                    self._checkpoint.claim_block(names, first, last)
                for number in range(max(first, begun), last):
                    self._step(number)
                    self._done = number + 1
                    if progress is not None:
                        progress(number + 1, len(names))
                    if self._done < last:
                        late = time.monotonic() - self._saved_at >= _AUTOSAVE_SECONDS
                        # several processes may be a step apart
                        if (signals.waiting or late) and self._group.size == 1:
                            self._save()
                        signals.answer()
                self._finish(first, last)
        return self.dataset()

    def _initial_head(self) -> None:
        multiplier = 0.0
        if self._recipe.head == "prototype":
            multiplier = self._history["prototypes"].noise_multiplier or 0.0
            if self._checkpoint is not None:
                self._checkpoint.claim("prototypes", 1)
        self._network.initial_head(self._streams, multiplier)

    def _step(self, number: int) -> None:
        active = self._stages.enter(number)
        stage = active.slot.stage
        if stage.subset != "head":
            self._network.forget_features()
        release = self._stepper.release(active, number)
        self._record.log(number, release, clip=self._recipe.clip is not None)
        self._all_lost = (release.lost == release.batch) & (release.lost > 0)
        if stage.selects:
            self._stages.select(release.sums)
            self._stages.leave()
        else:
            self._stepper.update(active, number, release.sums)

    def _finish(self, first: int, last: int) -> None:
        """Evaluate after the steps from one stop to the next, and save."""
        lost = None
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            lost = "a weight is no longer finite"
        elif self._all_lost:
            lost = "no gradient is finite any more"
        if lost:
            message = f"{lost} between steps {first} and {last}: use a smaller lr"
            raise Diverged(message, self.dataset())
        self._evaluate(last)
        self._save()

    def _evaluate(self, step: int) -> None:
        if self.first:
            self._record.evaluate(step, self._network, self._loss, self._options.watch)

    def dataset(self) -> xr.Dataset:
        """Return the record so far; NaN where nothing is recorded yet."""
        return self._record.dataset(
            {
                "config": json.dumps(self._config),
                "privacy": json.dumps(self._history.as_dict()),
                "engines": json.dumps(self._engines),
                "versions": json.dumps({"torch": torch.__version__, "numpy": np.__version__}),
            }
        )

    def _save(self) -> None:
        if self._checkpoint is None or not self.first:
            return
        self._saved_at = time.monotonic()
        weights = {f"weight:{k}": v.cpu().numpy() for k, v in self.model.state_dict().items()}
        arrays = weights | self._stages.arrays() | self._record.arrays()
        arrays["engines"] = np.array(json.dumps(self._engines))
        self._checkpoint.write(self._done, self._streams.key, arrays)

    def _restore(self, checkpoint: Checkpoint) -> None:
        found = checkpoint.read(None if self._options.rng is None else self._streams.key)
        self._streams.key = found.key
        self._done = found.step
        # a measurement may choose another now, whose sums are rounded otherwise
        self._engines.update(json.loads(str(found.arrays.get("engines", "{}"))))
        if found.step:
            self._stages.restore(found.step, found.named("mask"), found.named("momentum"))
        weights = {name: torch.from_numpy(array) for name, array in found.named("weight").items()}
        checkpoint.fits(self.model, weights)
        self.model.load_state_dict(weights)
        self._network.forget_features()
        self._record.restore(found.arrays)
