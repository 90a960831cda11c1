"""The step loop on a GPU, in torch: all paths of a chunk take a step at once.

A chunk's states lie on the device as they do in host memory, see `langevin._kernels`: element ``e`` of a
path gets the same normal draw on either, neighbours in memory come from neighbouring counters, and the
first layers are a batch of matrices ``(k, h)`` in place. A step is

- ``Z = X W^T``, one batched product;
- `rows`, one pass over ``Z``: outputs, squared norms of the gradients, clipped residuals ``s``;
- `columns`, another: ``v -= dt A^T s``, and ``Z`` becomes ``s_i v_j phi'(z_ij)``;
- ``W -= dt X^T Z``, one batched product straight into the states;
- `add_normals`, one pass over the states.

Of the three passes there are two forms: the plain ones here, for tensors anywhere, and the kernels of
`langevin._triton`, for a GPU, where a step is recorded once a phase as a CUDA graph and replayed.
What is observed is computed on the device, too, but for what lies outside the span of the data.

New as a whole; the algorithm is that of `langevin._kernels`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from langevin import _kernels
from langevin._engine import Chain
from langevin._kernels import FLAT, LANES, LP, NORMALISED, TILE, Rule
from langevin._layout import aligned_zeros
from langevin._results import Chunk, Results
from langevin.model.activations import ACTIVATIONS, Activation
from langevin.model.losses import LOSSES, Loss

# states of a chunk: more paths at once are no faster
_CHUNK_BYTES = 2**28
# a call lasts about this long, and its steps are sent off in bursts of about that
_CALL_SECONDS, _BURST_SECONDS = 0.2, 0.02

CLIP, STABILISER, DT, NOISE = range(4)
STEP, FIRST_PATH, KEY = range(3)


def find(name: str) -> torch.device:
    """The device of that name, ``"cuda"`` or ``"cuda:<number>"``.

    Raises
    ------
    ValueError
        If there is none, or nothing to program it with.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"device must be 'cpu' here, got {name!r}: PyTorch {torch.__version__} finds no CUDA GPU; "
            "run nvidia-smi to see whether there is one, and install a PyTorch built for its driver"
        )
    device = torch.device(name)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"device must be 'cpu' or 'cuda:0' to 'cuda:{count - 1}' here, got {name!r}")
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"device must be 'cpu' here, got {name!r}: Triton, which compiles for the GPU, is not installed; "
            "pip install triton"
        ) from None
    return device


# --- the passes, in plain torch --------------------------------------------------------------


def _philox(counter: torch.Tensor, c1: int, c2: torch.Tensor, k0: int, k1: int) -> tuple[torch.Tensor, ...]:
    """`langevin._kernels._philox` on 32-bit words in signed 64-bit lanes, all of stream 0."""
    low = 0xFFFFFFFF
    a, c = torch.broadcast_tensors(counter, c2)
    b, d = torch.full_like(a, c1), torch.zeros_like(a)
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) & low ^ b ^ k0, q & low, (p >> 32) & low ^ d ^ k1, p & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return a, b, c, d


def _box_muller(w0: torch.Tensor, w1: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if dtype == torch.float64:
        u = (w0.to(dtype) + 0.5) * 2.0**-32
    else:
        u = (w0 >> 1).to(dtype) * 2.0**-31 + 2.0**-33
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), w1.to(torch.float64) * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle).to(dtype), radius * torch.sin(angle).to(dtype)


def add_normals(e: Ensemble, trained: int, rule: Rule, draw: int) -> None:
    """Add draw ``draw`` of the step that `columns` has just counted to ``theta[:, :trained]``."""
    step, first_path, k0, k1 = e.clock.tolist()
    counter = torch.arange(trained // 4).view(1, -1, LANES)
    path = first_path + torch.arange(len(e.theta)).view(-1, 1, 1)
    words = _philox(counter, ((step - 1) * rule.draws + draw) & 0xFFFFFFFF, path, k0, k1)
    tiles = e.theta[:, :trained].view(len(e.theta), -1, TILE // LANES, LANES)
    for first in (0, 2):
        x, y = _box_muller(words[first], words[first + 1], e.theta.dtype)
        tiles[:, :, first] += e.numbers[NOISE] * x
        tiles[:, :, first + 1] += e.numbers[NOISE] * y


def rows(e: Ensemble, rule: Rule) -> None:
    """Go from ``Z`` to outputs, squared norms and clipped residuals; say where they are not finite."""
    a = e.activation.tensor_value(e.Z)
    e.f[:] = torch.bmm(a, e.v.unsqueeze(2)).squeeze(2)
    norm = a.square().sum(2)
    if rule.method != LP:
        slopes = e.activation.tensor_slope(e.Z).square()
        norm += e.squared_norms * torch.bmm(slopes, e.v.square().unsqueeze(2)).squeeze(2)
    s = e.loss.tensor_residual(e.f, e.y)
    clip, stabiliser = e.numbers[CLIP], e.numbers[STABILISER]
    if rule.clipping == FLAT:
        g = s.abs() * norm.sqrt()
        s = torch.where(g > clip, s * (clip / g), s)
    elif rule.clipping == NORMALISED:
        s = s * (clip / (s.abs() * norm.sqrt() + stabiliser))
    e.s[:] = s
    finite = torch.isfinite(e.f.double().square() + norm.double()).all(1)
    # no index by a mask, which a CUDA graph cannot record
    e.diverged.copy_(torch.where(~finite & (e.diverged < 0), e.clock[STEP], e.diverged))


def columns(e: Ensemble, store: bool) -> None:
    """Take the head's step, and count it; with ``store``, leave ``s_i v_j phi'(z_ij)`` in ``Z``."""
    gradient = torch.bmm(e.s.unsqueeze(1), e.activation.tensor_value(e.Z)).squeeze(1)
    if store:
        e.Z[:] = e.activation.tensor_slope(e.Z) * (e.s.unsqueeze(2) * e.v.unsqueeze(1))
    e.v.sub_(e.numbers[DT] * gradient)
    e.clock[STEP] += 1


# --- a chunk on the device -------------------------------------------------------------------


class Ensemble:
    """States of a chunk's paths on the device, and all that their steps work on.

    Attributes
    ----------
    theta, W, v : Tensor, shapes (paths, size), (paths, k, h), (paths, h)
        States, and views of their parts.
    Z : Tensor, shape (paths, n, h)
        Pre-activations, then what the second product reads. In linear probing they stay.
    f, s : Tensor, shape (paths, n)
        Outputs and clipped residuals.
    diverged : Tensor of int64, shape (paths,)
        As in `Results`.
    clock : Tensor of int64, shape (4,)
        Step, first path, and the two words of the key.
    numbers : Tensor, shape (4,)
        Clip, stabiliser, dt and the noise of a draw: of the present phase.
    """

    def __init__(self, chain: DeviceChain, chunk: Chunk, diverged: np.ndarray) -> None:
        data, layout = chain.data, chain.layout
        n, k, h = data.y.size, data.inputs, data.width
        paths = len(chunk.thetas)
        dtype = torch.float64 if layout.dtype is np.float64 else torch.float32
        self.chain, self.device = chain, chain.device
        self.activation, self.loss = chain.tables
        self.X = self._there(np.ascontiguousarray(data.X[:n, :k])).expand(paths, n, k)
        self.y, self.squared_norms = self._there(data.y), self._there(data.squared_norms[:n])
        self.theta = torch.empty((paths, layout.size), dtype=dtype, device=self.device)
        self.v, self.W = self._parts(self.theta)
        self.Z = torch.empty((paths, n, h), dtype=dtype, device=self.device)
        self.f, self.s = (torch.empty((paths, n), dtype=dtype, device=self.device) for _ in range(2))
        self.diverged = self._there(diverged)
        self.clock = self._there(np.array([chunk.step, chunk.first_path, *chain.key], np.int64))
        self.numbers = torch.zeros(4, dtype=dtype, device=self.device)
        self.origin, self.means = self._there(chain.records.origin), self._there(chain.records.means)
        self.own = self._there(chain.records.own)
        self.theta[:] = self.origin
        # by the same product as later ones: what has not moved must compare as equal
        self.start = self._own_preactivation() if len(self.own) else None
        if chunk.step > 0:
            self.theta.copy_(self._there(chunk.thetas))
        self.phase = -1
        self.rule: Any = None
        self.graphs: dict[int, Any] = {}
        self.burst = 1
        # of the passes, what has no kernel runs in its plain form
        self.passes: Any = sys.modules[__name__]
        self.noise: Any = add_normals
        if self.device.type == "cuda":
            from langevin import _triton

            self.noise = _triton.add_normals
            if chain.fused:
                self.passes = _triton

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def _parts(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.chain.layout
        first = theta[:, layout.head : layout.head + layout.inputs * layout.ld]
        first = first.view(len(theta), layout.inputs, layout.ld)
        return theta[:, : layout.width], first[:, :, : layout.width]

    # steps

    def enter(self, phase: int) -> None:
        """Make ready for steps of a phase."""
        if phase == self.phase:
            return
        self.phase, self.rule = phase, self.chain.rule(self.chain.schedule.phases[phase])
        rule = self.rule
        numbers = [float(x) for x in (rule.clip, rule.stabiliser, rule.dt, rule.noise)]
        self.numbers.copy_(torch.tensor(numbers, dtype=self.numbers.dtype))
        if rule.method == LP:
            self._preactivate()

    def advance(self, count: int) -> None:
        """Take ``count`` steps of the present phase."""
        if self.device.type != "cuda":
            for _ in range(count):
                self._step()
            return
        if count > 0 and self.phase not in self.graphs:
            # compiles, and warms up
            self._step()
            count -= 1
            self.graphs[self.phase] = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        for _ in range(count):
            self.graphs[self.phase].replay()

    def _preactivate(self) -> None:
        torch.bmm(self.X, self.W, out=self.Z)

    def _evaluate(self) -> None:
        if self.rule.method != LP:
            self._preactivate()
        self.passes.rows(self, self.rule)

    def _step(self) -> None:
        rule = self.rule
        self._evaluate()
        if rule.method == LP:
            self.passes.columns(self, False)
        elif self.activation.name == "linear":
            # of rank one, and before the head moves
            pull = torch.mm(self.s, self.X[0])
            self.W.baddbmm_(pull.unsqueeze(2), self.v.unsqueeze(1), alpha=-float(rule.dt))
            self.passes.columns(self, False)
        else:
            self.passes.columns(self, True)
            self.W.baddbmm_(self.X.mT, self.Z, alpha=-float(rule.dt))
        if rule.noise > 0:
            trained = self.chain.layout.head if rule.method == LP else self.theta.shape[1]
            for draw in range(rule.draws):
                self.noise(self, trained, rule, draw)

    # observation

    def observe(self, r: int, chunk: Chunk, results: Results) -> None:
        """Write record ``r`` of all paths that are finite."""
        chain, records = self.chain, self.chain.records
        self._evaluate()
        found = {
            _kernels.LOSS: self.loss.tensor_value(self.f.double(), self.y.double()).sum(1),
            _kernels.DISPLACEMENT: self._squared_distance(self.origin),
        }
        if records.reference.shape[0]:
            found[_kernels.DISTANCE] = self._squared_distance(self._there(records.reference[r]))
        preactivation = None
        if self.start is not None:
            preactivation = self._own_preactivation()
            found[_kernels.ACCURACY] = (self.y * self.f > 0).double().mean(1)
            found[_kernels.MISALIGNED] = (self.own * self.v < 0).double().mean(1)
            found[_kernels.DISTORTED] = (preactivation < self.start).double().mean(1)
            relu = self.activation.name == "relu"
            dead = ~(self.Z > 0).any(1) if relu else torch.zeros_like(preactivation)
            found[_kernels.DEAD] = dead.double().mean(1)
        values = torch.stack(list(found.values())).cpu().numpy()
        diverged = results.diverged[chunk.paths] = self.diverged.cpu().numpy()
        alive, moved = diverged < 0, np.zeros(len(diverged))
        if records.complement_dim > 0:
            moved = chain.move_complements(r, chunk, diverged)
        scalars = results.scalars[chunk.paths]
        for row, value in zip(found, values, strict=True):
            outside = moved if row in (_kernels.DISPLACEMENT, _kernels.DISTANCE) else 0.0
            scalars[alive, row, r] = (value + outside)[alive]
        if preactivation is not None and results.neurons.size:
            results.neurons[chunk.paths][alive, :, r] = self._neurons(preactivation, chunk)[alive]

    def _squared_distance(self, other: torch.Tensor) -> torch.Tensor:
        v, W = self._parts(other.unsqueeze(0))
        norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
        return norm(self.W - W, dim=(1, 2)).square() + norm(self.v - v, dim=1).square()

    def _own_preactivation(self) -> torch.Tensor:
        """Mean pre-activation of each neuron on its own class, shape (paths, h)."""
        both = torch.bmm(self.means.expand(len(self.W), -1, -1), self.W)
        return torch.where(self.own > 0, both[:, 1], both[:, 0])

    def _neurons(self, preactivation: torch.Tensor, chunk: Chunk) -> np.ndarray:
        """Per-neuron observables, shape (paths, 3, h)."""
        records = self.chain.records
        z = preactivation.double().cpu().numpy()
        squared = self.W.square().sum(1).double().cpu().numpy()
        outside = records.complement_norms
        if records.complement_dim > 0:
            outside = outside + chunk.complements[:, 0]
            squared += chunk.complements[:, 1]
        norm = np.sqrt(squared + outside**2) * np.where(records.own > 0, *records.mean_norms[::-1])
        out = np.empty((len(z), _kernels.NEURON_ROWS, z.shape[1]))
        out[:, _kernels.ALIGNMENT] = np.divide(z, norm, out=np.zeros_like(z), where=norm > 0)
        out[:, _kernels.PREACTIVATION] = z
        out[:, _kernels.HEAD_ALIGNMENT] = (self.own * self.v).double().cpu().numpy()
        return out


@dataclass
class DeviceChunk(Chunk):
    """A chunk whose states, once it has moved, lie on the device; in ``thetas`` only after `states`."""

    ensemble: Ensemble | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DeviceChain(Chain):
    """A chain whose chunks step on ``device``; ``threads`` draw what lies outside the span."""

    device: torch.device = field(kw_only=True)
    threads: int = field(kw_only=True)

    @classmethod
    def of(cls, chain: Chain, device: torch.device, threads: int) -> DeviceChain:
        """The same chain on a device.

        Raises
        ------
        ValueError
            If its activation or loss has no form for tensors.
        """
        problem = chain.problem
        activation, loss = ACTIVATIONS[problem.activation], LOSSES[problem.loss]
        for kind, entry, forms in (
            ("activation", activation, (activation.tensor_value, activation.tensor_slope)),
            ("loss", loss, (loss.tensor_value, loss.tensor_residual)),
        ):
            if None in forms:
                raise ValueError(
                    f"device must be 'cpu' with {kind} {entry.name!r}, got {str(device)!r}: its entry has no "
                    "form for tensors"
                )
        return cls(**{f.name: getattr(chain, f.name) for f in fields(Chain)}, device=device, threads=threads)

    @property
    def tables(self) -> tuple[Activation, Loss]:
        """The entries of what is simulated."""
        return ACTIVATIONS[self.reduction.problem.activation], LOSSES[self.problem.loss]

    @property
    def fused(self) -> bool:
        """Whether `langevin._triton` has kernels for both."""
        return _kernels.CALLED not in (self.data.activation, self.data.loss)

    @property
    def place(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"torch on {self.device.type}"

    def start(self, first_path: int, paths: int) -> DeviceChunk:
        """Paths at step 0: what is in host memory is not touched before it is needed."""
        thetas = aligned_zeros((paths, self.layout.size), self.layout.dtype)
        return DeviceChunk(first_path, 0, thetas, np.zeros((paths, 2, self.reduction.processes)))

    def step_seconds(self) -> float:
        """Next to none: `advance` looks at the clock itself."""
        return 1e-12

    def chunk_paths(self, paths: int, threads: int) -> int:
        """Paths a chunk: as many as the device's memory takes, up to where more are no faster."""
        state = self.records.origin.nbytes
        # states, a difference of them, pre-activations, outputs and residuals; plain passes hold activations,
        # slopes and products of them, too
        layers = 1 if self.fused else 5
        each = 2.5 * state
        each += self.data.y.size * (layers * self.data.width + 8) * self.records.origin.itemsize * 1.2
        most = max(1, min(_CHUNK_BYTES // state, int(0.8 * self._free_bytes() / each)))
        return math.ceil(paths / math.ceil(paths / most))

    def _free_bytes(self) -> float:
        if self.device.type != "cuda":
            return 2**30
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def advance(self, chunk: Chunk, results: Results, scratch: _kernels.Scratch, stop: int) -> None:
        """Bring a chunk towards step ``stop`` for about `_CALL_SECONDS`, and record on the way."""
        assert isinstance(chunk, DeviceChunk)
        deadline = time.monotonic() + _CALL_SECONDS
        records, diverged = self.records.steps, results.diverged[chunk.paths]
        with _exact_products(self.device):
            if chunk.ensemble is None:
                chunk.ensemble = Ensemble(self, chunk, diverged)
            ensemble = chunk.ensemble
            ensemble.enter(int(np.searchsorted(self.grid.phase_starts, chunk.step, side="right")) - 1)
            r = int(np.searchsorted(records, chunk.step))
            last, late = stop == self.grid.steps, False
            # late after a step only: every call gets somewhere; the call that goes on from a record takes it
            while not (late and chunk.step < stop):
                if r < records.size and records[r] == chunk.step and (chunk.step < stop or last):
                    ensemble.observe(r, chunk, results)
                    r += 1
                if chunk.step == stop:
                    break
                before = time.monotonic()
                following = int(records[r]) if r < records.size else stop
                count = min(ensemble.burst, stop - chunk.step, following - chunk.step)
                ensemble.advance(count)
                diverged[:] = ensemble.diverged.cpu().numpy()
                chunk.step += count
                results.steps[chunk.paths] = chunk.step
                now = time.monotonic()
                late = now > deadline
                if count == ensemble.burst and now - before < _BURST_SECONDS:
                    ensemble.burst *= 2

    def states(self, chunk: Chunk) -> np.ndarray:
        """The chunk's states, copied to host memory."""
        assert isinstance(chunk, DeviceChunk)
        if chunk.ensemble is not None:
            chunk.thetas[:] = chunk.ensemble.theta.cpu().numpy()
        elif chunk.step == 0:
            chunk.thetas[:] = self.records.origin
        return chunk.thetas

    def move_complements(self, r: int, chunk: Chunk, diverged: np.ndarray) -> np.ndarray:
        """Move what lies outside the span to record ``r``; squared displacements, shape (paths,)."""
        moved = np.zeros(len(diverged))
        draw = int(self.records.steps[r]) * self.draws

        def move(part: slice) -> None:
            _kernels.move_complements(
                chunk.complements[part],
                diverged[part],
                self.records.complement_scale[r],
                self.records.complement_dim,
                draw,
                chunk.first_path + part.start,
                np.uint64(self.key[0]),
                np.uint64(self.key[1]),
                moved[part],
            )

        edges = np.linspace(0, len(moved), self.threads + 1).astype(int)
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(move, (slice(a, b) for a, b in pairwise(edges.tolist()))))
        return moved


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Single precision in full, whatever the caller has allowed, on the chain's device."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
