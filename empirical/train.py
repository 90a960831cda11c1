"""Fine-tuning a pre-trained network with DP-SGD, in stages, on one privacy budget."""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from empirical import ambient, memory, passes, subsets, trial
from empirical.backbones import Classifier, eager, features_of
from empirical.byclass import ByClass
from empirical.check import check_passes
from empirical.checkpoint import Checkpoint, digest
from empirical.features import MEASURES
from empirical.gradients import Ghost, Gradients, Loop, PerSample, Plain, engine, factors
from empirical.images import Images, normalised
from empirical.losses import CrossEntropy
from empirical.parallel import Group, place
from empirical.privatise import make_private
from empirical.recipe import Recipe, Stage
from empirical.streams import Streams
from empirical.tabular import Rows
from langevin import _engine, _validate, store
from langevin._random import RNG
from langevin.solvers import Diverged

if TYPE_CHECKING:
    import xarray as xr

Precision = Literal["single", "mixed"]

PRECISIONS = ("single", "mixed")
# of an evaluation, over `step`
EVALUATIONS = {
    "test_accuracy": ("share of test images classified rightly", "1"),
    "test_loss": ("mean cross-entropy over the test images", "nat"),
    "train_accuracy": ("share of private training images classified rightly; not private", "1"),
    "train_loss": ("mean cross-entropy over the private training images; not private", "nat"),
}
# of a training step, over `update`
UPDATES = {
    "batch": ("samples drawn", "1"),
    "clip_rate": ("share of the batch with a gradient norm above the clip; not private", "1"),
    "gradient_norm": ("mean per-sample gradient norm of the batch; not private", "gradient"),
    "signal_to_noise": (
        "norm of the clipped sum over that expected of its noise; not private",
        "1",
    ),
}
# samples at once, at most; with per-sample gradients on a processor, whose cache holds few
_AT_ONCE = 4096
_AT_ONCE_PER_SAMPLE = 256
_AUTOSAVE_SECONDS = 60.0


# measures of body and head by name, such as an `empirical.features.FeatureWatch`; its method `again`, if it
# has one, is called with the head alone while the body stays as it was
Watch = Callable[[nn.Module, nn.Linear], Mapping[str, float]]


def finetune(
    task: Images,
    body: nn.Module,
    recipe: Recipe,
    *,
    rng: RNG = 0,
    device: str = "cpu",
    evaluations: int = 10,
    watch: Watch | None = None,
    precision: Precision = "single",
    chunk: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Fine-tune a pre-trained body with a new head on a private task.

    Parameters
    ----------
    task : Images
        Normalised by its public part; without one, intensities become ``2 x - 1``.
    body : nn.Module
        Maps images to ``body.features`` features. It is copied, and made fit for DP-SGD by `make_private`.
        A body under ``torch.compile`` is taken as it was before; a scripted or traced one is refused.
    recipe : Recipe
    rng : int, Generator or None
        Of head, batches and noise (SPEC 7). Take None, fresh entropy, for weights that leave your hands: who
        knows the seed can subtract the noise.
    device : str
        "cpu", "cuda" or "cuda:<number>".
    evaluations : int
        Evaluations after the one at the start, at about equal distances; a checkpoint at each.
    watch : callable, optional
        Measures of the features, at each evaluation.
    precision : {"single", "mixed"}
        "mixed": bfloat16 where no guarantee depends on it: evaluations, frozen features, training without
        clipping, and per-sample gradients that are in memory (their norms and sums are single). Ghost
        clipping and the closed form compute norms and sums apart, with errors of their own: they stay single.
    chunk : int, optional
        Samples of a batch to work on at once; by default what memory allows.
    checkpoint : path, optional
        File to save the state in at each evaluation, every minute and on interruption; the privacy ledger
        stands beside it, ending in ``.ledger``, and records steps before their noise is drawn.
    resume : bool
        Go on from ``checkpoint``, to the same result, bit for bit on a CPU.
    progress : callable, optional
        Called with the number of steps done and of all.

    Returns
    -------
    xarray.Dataset
        Over ``step``, the number of steps before an evaluation: test and training accuracy and loss, and what
        ``watch`` measures; the test accuracy of each class, and the confusions of the last evaluation. Over
        ``update``, each step's batch, clip rate, mean gradient norm and signal-to-noise ratio. The attributes
        hold the recipe and the history to account for. All but the test figures is computed from private data
        without noise: for research, not for release.

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
    Probing works on features that are computed once, and in closed form. Dropout is off throughout.

    The same seed gives the same run to the last bit with the same number of torch threads. With another
    number, sums are rounded in another order, and weights differ by about 5e-7.

    Torch works in its own modes inside, whatever the caller set (gradients, default precision and device,
    autocasting), and its random state stays as it was. `FineTuning` keeps the trained network, too.

    Examples
    --------
    >>> from empirical import digits, mlp, Recipe
    >>> from empirical.train import finetune
    >>> task = digits()
    >>> run = finetune(task, mlp(task.train.shape, (64,)), Recipe("lp", steps=20, lr=2.0), rng=0)
    >>> run.test_accuracy.sizes
    Frozen({'step': 11})
    """
    return FineTuning(
        task,
        body,
        recipe,
        rng=rng,
        device=device,
        evaluations=evaluations,
        watch=watch,
        precision=precision,
        chunk=chunk,
        checkpoint=checkpoint,
        resume=resume,
    ).run(progress)


class FineTuning:
    """One fine-tuning, whose network is at hand after `run`; see `finetune` for the parameters.

    Attributes
    ----------
    model : Classifier
        Body and head, in their present state, on images normalised as ``(x - mean) / std``.
    classes : tuple of str
        In the order of the model's outputs.
    mean, std : ndarray, shape (channels,)
        Of the public part; 1/2 and 1/2 without one.

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
        *,
        rng: RNG = 0,
        device: str = "cpu",
        evaluations: int = 10,
        watch: Watch | None = None,
        precision: Precision = "single",
        chunk: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> None:
        _validate.choice("precision", precision, PRECISIONS)
        body = eager(body)
        if not isinstance(recipe, Recipe):
            raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
        self._device = place(device)
        self._chunk = None if chunk is None else _validate.integer("chunk", chunk, 1)
        self._recipe, self._watch, self._mixed = recipe, watch, precision == "mixed"
        self._history = recipe.history(len(task.train))
        self._loss = CrossEntropy()
        self._group = Group()
        self._steps = list(_steps(recipe))
        count = _validate.integer("evaluations", evaluations, 1)
        self._stops = np.unique(np.rint(np.linspace(0, len(self._steps), count + 1)).astype(int))

        tried = trial.images(task)
        private = _prepared(body, tried, recipe, self._device)
        # copies of some modules, such as torch.fx's, lack it
        private.features = features_of(body)  # type: ignore[assignment]
        memory.require(private, task.train.shape, len(task.train) + len(task.test), self._device)
        self._kept_of_one = memory.kept(private, task.train.shape)
        initial = digest(*(v.detach().cpu().numpy() for v in body.state_dict().values()))
        self.model = Classifier(private, len(task.train.classes)).to(self._device)
        self._may = [p for p in self.model.parameters() if p.requires_grad]
        self._group.synchronise(self.model)
        # before anything is claimed or written; without clipping there is nothing to hold to it
        self._engines = (
            {}
            if recipe.clip is None
            else trial.choose_all(self.model, recipe, self._loss, tried.to(self._device))
        )
        self.classes, self._shape, self._fresh = task.train.classes, task.train.shape, rng is None
        self._rows = isinstance(task.train, Rows)
        self.mean, self.std = task.scale()
        self._data = {
            part: (self._images(task, part), torch.tensor(getattr(task, part).labels, device=self._device))
            for part in ("train", "test")
        }
        # features of parts of the data, for as long as the body is as it is
        self._known: dict[str, Tensor] = {}
        self._watched = False
        self._masks: dict[str, Tensor] = {}
        self._stage: _Active | None = None
        self._adapted = False
        self._done, self._kept = 0, time.monotonic()
        self._all_lost = torch.zeros((), dtype=torch.bool)
        self._names: list[str] = []
        self._evaluated = np.zeros((len(self._stops), 0))
        self._by_class = ByClass(self.classes, len(self._stops))
        self._updates = torch.full((len(self._steps), len(UPDATES)), math.nan, device=self._device)

        self._streams = Streams(rng, self._device)
        self._streams.key = self._group.agreed(self._streams.key)
        self._config = {
            "recipe": json.loads(json.dumps(recipe.as_dict())),
            "task": digest(task.train.images, task.train.labels, task.test.images, task.test.labels),
            "body": initial,
            "evaluations": self._stops.tolist(),
            "device": self._device.type,
            "precision": precision,
        }
        self._saved = (
            Checkpoint(checkpoint, self._config, self._history, owner=not self._group.rank)
            if checkpoint
            else None
        )
        if self._saved and resume:
            self._restore(self._saved, fresh=rng is None)
        elif self._saved:
            # only the first can tell: another that looks later may find what the first has written since
            existing = self._group.agreed(self._saved.existing())
            if existing is not None:
                raise store.StoreError(
                    f"checkpoint must not exist for a new run, got {str(existing)!r}: resume it, or take "
                    "another path"
                )

    def record(self) -> dict[str, Any]:
        """What goes with `model` into a file: classes, normalisation, recipe and privacy record."""
        return {
            "classes": list(self.classes),
            "inputs": "features" if self._rows else "images",
            "shape": list(self._shape),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "rank": self._recipe.rank if self._adapted else None,
            "recipe": self._recipe.as_dict(),
            "history": self._history.as_dict(),
            "noise": "from entropy that the model does not hold" if self._fresh else "from a seed",
        }

    @property
    def first(self) -> bool:
        """Whether this process evaluates, and keeps records; of several that train together, one does."""
        return self._group.rank == 0

    @ambient.ordinary()
    def run(self, progress: Callable[[int, int], None] | None = None) -> xr.Dataset:
        """Train to the end, from wherever this stands."""
        try:
            return self._run(progress)
        finally:
            if self._saved is not None:
                self._saved.close()

    def _run(self, progress: Callable[[int, int], None] | None) -> xr.Dataset:
        begun = self._done
        if begun == 0 and not self._evaluated.size:
            # so that whatever happens from here on, there is something to go on from
            self._save()
            self._initial_head()
            # sums over images may be rounded otherwise on another GPU
            self._group.synchronise(self.model)
            self._evaluate(0)
            self._save()
        for first, last in itertools.pairwise(self._stops):
            if last <= begun:
                continue
            # a signal waits for the step in flight, or for the evaluation
            with _engine.Deferred() as signals:
                self._claim(int(first), int(last))
                for number in range(max(int(first), begun), int(last)):
                    self._step(number)
                    self._done = number + 1
                    if progress is not None:
                        progress(number + 1, len(self._steps))
                    if self._done < last:
                        late = time.monotonic() - self._kept >= _AUTOSAVE_SECONDS
                        # several processes may be a step apart
                        if (signals.waiting or late) and self._group.size == 1:
                            self._save()
                        signals.answer()
                self._finish(int(first), int(last))
        return self.dataset()

    def _finish(self, first: int, last: int) -> None:
        """Evaluate after the steps from one stop to the next, and save."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise Diverged(
                f"a weight is no longer finite between steps {first} and {last}: take a smaller lr",
                self.dataset(),
            )
        if self._all_lost:
            raise Diverged(
                f"no gradient is finite any more between steps {first} and {last}: take a smaller lr",
                self.dataset(),
            )
        self._evaluate(last)
        self._save()

    # ---- data

    def _images(self, task: Images, part: str) -> Tensor:
        chosen = getattr(task, part)
        return torch.from_numpy(normalised(chosen.images, self.mean, self.std)).to(self._device)

    def _autocast(self, safe: bool = True) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed and safe)

    def _features(self, images: Tensor) -> Tensor:
        self.model.eval()

        def features(at_once: int) -> Tensor:
            with torch.no_grad(), self._autocast():
                return torch.cat([self.model.body(part).float() for part in images.split(at_once)])

        at_once = memory.chunk(self._kept_of_one, _AT_ONCE, self._device)
        return memory.fitting(features, at_once, self._device)[0]

    def _features_of(self, part: str) -> Tensor:
        """Features of a part, computed once for as long as no step changes the body."""
        if part not in self._known:
            self._known[part] = self._features(self._data[part][0])
        return self._known[part]

    def _forget_features(self) -> None:
        """Note that the body is about to change."""
        self._known.clear()
        self._watched = False

    # ---- head and what trains

    def _initial_head(self) -> None:
        weight = self.model.head.weight
        recipe = self._recipe
        with torch.no_grad():
            if recipe.head == "prototype":
                self._claim_one("prototypes")
                weight.copy_(self._prototypes())
            else:
                scale = recipe.head_scale / math.sqrt(weight.shape[1]) if recipe.head == "gaussian" else 0.0
                draws = torch.from_numpy(self._streams.draws(0, weight.numel()))
                weight.copy_((scale * draws).view_as(weight))

    def _prototypes(self) -> Tensor:
        """Sums of the unit features of each class, with noise, brought to one norm."""
        labels = self._data["train"][1]
        units = nn.functional.normalize(self._features_of("train"))
        weight = self.model.head.weight
        sums = torch.zeros_like(weight).index_add_(0, labels, units)
        nu = self._history["prototypes"].noise_multiplier or 0.0
        noise = self._streams.noise(_PROTOTYPES, 0, sums.numel(), sums.dtype)
        return self._recipe.head_scale * nn.functional.normalize(sums + nu * noise.view_as(sums))

    def _enter(self, number: int) -> _Active:
        """Set up what trains in the stage of step ``number``, unless it is set up."""
        place, stage, first = self._steps[number]
        if self._stage is not None and self._stage.place == place:
            return self._stage
        self._leave()
        head = self.model.head
        subset = "all" if stage is None else stage.subset
        if subset == "lora" and not self._adapted:
            self.model.body = subsets.adapt(
                self.model.body, self._recipe.rank, int(self._streams.key[0]) % 2**62
            ).to(self._device)
            self._adapted = True
        subsets.train_only(self.model, head, subset, self._may)
        if subset == "sparse" and not self._masks:
            self._select(None)
        named = dict(self.model.named_parameters())
        masks = {named[name]: mask for name, mask in self._masks.items()} if subset == "sparse" else {}
        probing = subset == "head"
        network = head if probing else self.model
        images, labels = self._data["train"]
        data = self._features_of("train") if probing else images
        clip = self._recipe.clip is not None
        network.train()
        name = "selection" if stage is None else stage.name
        kind = self._engines[name].kind if clip else "closed" if probing else self._recipe.engine
        make = functools.partial(engine, network, self._loss, kind, masks=masks, clip=clip)
        gradients = make()
        chunk = self._chunk or _chunk(gradients, 0 if probing else self._kept_of_one, self._device)
        self._stage = _Active(place, stage, first, gradients, make, masks, data, labels, chunk)
        if stage is not None:
            self._stage.optimizer = torch.optim.SGD(
                gradients.params, lr=stage.lr, momentum=self._recipe.momentum
            )
        return self._stage

    def _leave(self) -> None:
        if self._stage is not None:
            self._stage.gradients.close()
            self._stage = None

    def _select(self, gradient: list[Tensor] | None) -> None:
        """Choose the sparse subset of the body; the gradient is over body and head, in their order."""
        named = [(name, p) for name, p in self.model.body.named_parameters() if p.requires_grad]
        chosen = subsets.largest(
            subsets.scores(self._recipe.selection, [p for _, p in named], gradient), self._recipe.density
        )
        self._masks = {f"body.{name}": mask for (name, _), mask in zip(named, chosen, strict=True)}

    # ---- a step

    def _step(self, number: int) -> None:
        active = self._enter(number)
        if not active.probing:
            self._forget_features()
        released = self._release(active, number)
        if active.optimizer is None:
            inside = len([p for p in self.model.body.parameters() if p.requires_grad])
            self._select(released[:inside])
            self._leave()
            return
        assert active.stage is not None
        for p, sum_ in zip(active.gradients.params, released, strict=True):
            p.grad = sum_ / self._recipe.batch
        active.optimizer.param_groups[0]["lr"] = active.stage.rate(number - active.first)
        active.optimizer.step()
        active.optimizer.zero_grad()

    def _release(self, active: _Active, number: int) -> list[Tensor]:
        """The clipped, noisy sum of gradients of one step's batch: all that a step learns of private data."""
        recipe = self._recipe
        mechanism = self._history[active.name]
        chosen = self._streams.batch(
            active.place, number - active.first, len(active.labels), mechanism.sample_rate
        )
        mine = torch.from_numpy(chosen[self._group.rank :: self._group.size]).to(self._device)
        sums, counts = self._sums(active, mine)
        gradients = active.gradients
        flat = torch.cat([*(s.reshape(-1) for s in sums), counts])
        self._group.add(flat)
        total, (clipped, norms, lost) = flat[:-3], flat[-3:]
        self._all_lost = (lost == len(chosen)) & (lost > 0)
        signal = total.norm()
        spread = (mechanism.noise_multiplier or 0.0) * (recipe.clip or 0.0)
        entries = sum(p.numel() for p in gradients.params)
        if spread:
            noise = spread * self._streams.noise(active.place, number - active.first, len(total), total.dtype)
            if active.masks:
                keep = [active.masks.get(p, torch.ones_like(p)).reshape(-1) for p in gradients.params]
                kept = torch.cat(keep)
                noise = noise * kept
                entries = active.entries = active.entries or int(kept.sum())
            total = total + noise
        size = max(len(chosen), 1)
        row = self._updates[number]
        row[0] = len(chosen)
        if len(chosen) and recipe.clip is not None:
            row[1], row[2] = clipped / size, norms / size
        row[3] = signal / (spread * math.sqrt(entries)) if spread else math.inf
        shapes = [p.shape for p in gradients.params]
        parts = total.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _sums(self, active: _Active, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sums of the batch's clipped gradients, and counts as in `_summed`; by chunks that fit."""

        def afresh() -> None:
            active.gradients.close()
            active.gradients = active.make()

        at_once = max(1, min(active.chunk, len(batch)))
        found, fits = memory.fitting(
            lambda size: self._summed(active, batch, size), at_once, self._device, afresh
        )
        if fits < at_once:
            active.chunk = fits
        return found

    def _summed(self, active: _Active, batch: Tensor, at_once: int) -> tuple[list[Tensor], Tensor]:
        """Sums; and how many gradients were clipped, the sum of their norms, and how many were not finite."""
        recipe = self._recipe
        sums: list[Tensor] = []
        clipped = norms = lost = active.data.new_zeros(())
        # an empty batch has no part
        for part in batch.split(at_once) if len(batch) else ():
            with _exact_convolutions(self._device, isinstance(active.gradients, Ghost)):
                found, kept = self._norms(active, part)
                if not kept:
                    lost = lost + len(part)
                    continue
                weights = None
                if recipe.clip is not None:
                    assert found is not None
                    weights = factors(found, recipe.clip, recipe.clipping, recipe.stabiliser)
                    clipped = clipped + (found > recipe.clip).sum()
                    norms = norms + found.sum()
                    lost = lost + len(part) - kept
                # a rounded sum may change by more than the clip for one sample
                more = active.gradients.total(weights)
            sums = more if not sums else [a + b for a, b in zip(sums, more, strict=True)]
        zeros = [torch.zeros_like(p) for p in active.gradients.params]
        return sums or zeros, torch.stack([clipped, norms, lost])

    def _norms(self, active: _Active, part: Tensor) -> tuple[Tensor | None, int]:
        """Norms of a part's gradients, and of how many samples: those with finite ones.

        A sample whose gradient is beyond all numbers would make a sum that is none, however it is clipped.
        """
        gradients = active.gradients
        # where norms and sum come from the same numbers, those may be rounded
        safe = isinstance(gradients, PerSample | Loop | Plain)
        with self._autocast(safe):
            found = gradients.norms(active.data[part], active.labels[part])
            if self._recipe.clip is None or found is None or bool((finite := found.isfinite()).all()):
                return found, len(part)
            gradients.total(torch.zeros_like(found))
            kept = part[finite]
            if not len(kept):
                return found, 0
            return gradients.norms(active.data[kept], active.labels[kept]), len(kept)

    # ---- records

    @torch.no_grad()
    def _evaluate(self, step: int) -> None:
        if self._group.rank:
            return
        values = {}
        self.model.eval()
        place = int(np.searchsorted(self._stops, step))
        for part, (_, labels) in self._data.items():
            outputs = self.model.head(self._features_of(part))
            values[f"{part}_accuracy"] = self._loss.correct(outputs, labels).float().mean().item()
            values[f"{part}_loss"] = self._loss.value(outputs, labels).mean().item()
            if part == "test":
                self._by_class.add(place, labels, outputs.argmax(1))
        if self._watch is not None:
            again = getattr(self._watch, "again", None) if self._watched else None
            head = self.model.head
            values |= self._watch(self.model.body, head) if again is None else again(head)
            self._watched = True
        self._names = list(values)
        row = list(values.values())
        if not self._evaluated.size:
            self._evaluated = np.full((len(self._stops), len(row)), np.nan)
        self._evaluated[place] = row
        self.model.train()

    def dataset(self) -> xr.Dataset:
        """What was recorded so far; NaN for what was not."""
        import xarray as xr

        about = EVALUATIONS | {name: (m.meaning, m.units) for name, m in MEASURES.items()}
        variables: dict[str, Any] = {}
        for i, name in enumerate(self._names[: self._evaluated.shape[1]]):
            meaning, units = about.get(name, (name, "1"))
            variables[name] = ("step", self._evaluated[:, i], {"long_name": meaning, "units": units})
        variables |= self._by_class.variables()
        updates = self._updates.cpu().double().numpy()
        variables |= {
            name: ("update", updates[:, i], {"long_name": meaning, "units": units})
            for i, (name, (meaning, units)) in enumerate(UPDATES.items())
        }
        names = ["selection" if stage is None else stage.name for _, stage, _ in self._steps]
        return xr.Dataset(
            variables,
            {
                **self._by_class.coordinates(),
                "step": ("step", self._stops, {"long_name": "steps done", "units": "1"}),
                "update": ("update", np.arange(len(self._steps)), {"long_name": "number of a step"}),
                "stage": ("update", names, {"long_name": "what trains"}),
            },
            {
                "title": "private fine-tuning by DP-SGD",
                "source": "empirical",
                "config": json.dumps(self._config),
                "privacy": json.dumps(self._history.as_dict()),
                "engines": json.dumps({name: choice.kind for name, choice in self._engines.items()}),
                "versions": json.dumps({"torch": torch.__version__, "numpy": np.__version__}),
            },
        )

    # ---- privacy record and checkpoints

    def _claim(self, first: int, last: int) -> None:
        if self._saved is None or self._group.rank or not self._recipe.private:
            return
        names = [self._name(number) for number in range(first, last)]
        for name in dict.fromkeys(names):
            done = sum(self._name(number) == name for number in range(last))
            self._saved.claim(name, done)

    def _claim_one(self, name: str) -> None:
        if self._saved is not None and not self._group.rank and self._recipe.private:
            self._saved.claim(name, 1)

    def _name(self, number: int) -> str:
        stage = self._steps[number][1]
        return "selection" if stage is None else stage.name

    def _save(self) -> None:
        if self._saved is None or self._group.rank:
            return
        self._kept = time.monotonic()
        arrays = {f"weight:{k}": v.cpu().numpy() for k, v in self.model.state_dict().items()}
        arrays |= {f"mask:{k}": v.cpu().numpy() for k, v in self._masks.items()}
        if self._stage is not None and self._stage.optimizer is not None and self._recipe.momentum:
            for place, p in enumerate(self._stage.gradients.params):
                arrays[f"momentum:{place}"] = self._stage.optimizer.state[p]["momentum_buffer"].cpu().numpy()
        self._saved.write(
            self._done,
            self._streams.key,
            {
                **arrays,
                **self._by_class.arrays(),
                "updates": self._updates.cpu().numpy(),
                "evaluated": self._evaluated,
                "names": np.array(self._names, dtype=np.str_),
            },
        )

    def _restore(self, saved: Checkpoint, *, fresh: bool) -> None:
        found = saved.read(None if fresh else self._streams.key)
        self._streams.key = found.key
        self._done = found.step
        if found.step:
            self._masks = {
                name: torch.from_numpy(array).to(self._device) for name, array in found.named("mask").items()
            }
            # the stage that the last step was in, of which the momentum is needed if it goes on
            active = self._enter(found.step - 1) if self._steps[found.step - 1][1] is not None else None
            if active is not None:
                for place, buffer in found.named("momentum").items():
                    assert active.optimizer is not None
                    p = active.gradients.params[int(place)]
                    active.optimizer.state[p]["momentum_buffer"] = torch.from_numpy(buffer).to(self._device)
        weights = {name: torch.from_numpy(array) for name, array in found.named("weight").items()}
        saved.fits(self.model, weights)
        self.model.load_state_dict(weights)
        self._forget_features()
        self._by_class.restore(found.arrays)
        self._updates.copy_(torch.from_numpy(found.arrays["updates"]))
        self._evaluated, self._names = found.arrays["evaluated"], found.arrays["names"].tolist()


# the number of a stage that prototypes draw their noise from
_PROTOTYPES = 2**32


class _Active:
    """A stage that is set up."""

    def __init__(
        self,
        place: int,
        stage: Stage | None,
        first: int,
        gradients: Gradients,
        make: Callable[[], Gradients],
        masks: subsets.Mask,
        data: Tensor,
        labels: Tensor,
        chunk: int,
    ) -> None:
        self.place, self.stage, self.first = place, stage, first
        self.gradients, self.make, self.masks = gradients, make, masks
        self.data, self.labels, self.chunk = data, labels, chunk
        self.optimizer: torch.optim.SGD | None = None
        self.entries = 0

    @property
    def name(self) -> str:
        return "selection" if self.stage is None else self.stage.name

    @property
    def probing(self) -> bool:
        return self.stage is not None and self.stage.subset == "head"


def _prepared(body: nn.Module, images: Tensor, recipe: Recipe, device: torch.device) -> nn.Module:
    """A copy of a body that is fit for DP-SGD, tried on images in the modes that the recipe uses it in."""
    for name, value in body.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"body must be in single precision, got {value.dtype} in {name!r}: call float()")
    copied = passes.copied(body)
    trains = any(stage.subset != "head" for stage in recipe.stages)
    if not trains:
        copied.requires_grad_(False)
    private = make_private(copied).to(device)
    # features are computed in evaluation mode, and training goes on in training mode
    for training in (True, False) if trains else (False,):
        check_passes(private, images.to(device), training=training)
    return private


def _steps(recipe: Recipe) -> Iterator[tuple[int, Stage | None, int]]:
    """Each step's number of stage, its stage, None for the choice of a subset, and the stage's first step."""
    first = place = 0
    for stage in recipe.stages:
        if stage.subset == "sparse" and recipe.selects:
            yield place, None, first
            place, first = place + 1, first + 1
        yield from itertools.repeat((place, stage, first), stage.steps)
        place, first = place + 1, first + stage.steps


def _chunk(gradients: Gradients, kept: int, device: torch.device) -> int:
    """Samples at once, so that what is kept of each, and its gradients, take a fraction of memory."""
    sizes = [4 * p.numel() for p in gradients.params]
    own = (
        sum(sizes)
        if isinstance(gradients, PerSample | Loop)
        else max(sizes)
        if isinstance(gradients, Ghost)
        else 0
    )
    most = _AT_ONCE_PER_SAMPLE if own and device.type == "cpu" else _AT_ONCE
    return memory.chunk(own + 2 * kept, most, device)


def _exact_convolutions(device: torch.device, needed: bool) -> AbstractContextManager[Any]:
    """Convolutions in full single precision, so that two passes agree."""
    if not needed or device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
