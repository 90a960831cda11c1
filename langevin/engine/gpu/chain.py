"""The chain on an NVIDIA GPU, through PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from langevin.engine.chain import Chain
from langevin.engine.gpu import outputs
from langevin.engine.gpu.ensemble import Ensemble
from langevin.engine.gpu.outputs import OutputsEnsemble
from langevin.engine.gpu.scalar import ScalarEnsemble
from langevin.engine.kernels import observe as kernels_observe
from langevin.engine.kernels import types
from langevin.engine.kernels.outputs.types import OutputsData
from langevin.engine.layout import aligned_zeros
from langevin.engine.results import Chunk, Results
from langevin.model.activations import ACTIVATIONS, Activation
from langevin.model.losses import LOSSES, Loss

# states of a chunk: more paths at once are no faster
_CHUNK_BYTES = 2**28
# a call lasts about this long, and its steps are sent off in bursts of about that
_CALL_SECONDS, _BURST_SECONDS = 0.2, 0.02


def find(name: str) -> torch.device:
    """Return the device with this name, ``"cuda"`` or ``"cuda:<number>"``.

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


@dataclass
class DeviceChunk(Chunk):
    """A chunk whose states lie on the device once it has moved; `states` copies them to ``thetas``."""

    ensemble: Ensemble | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DeviceChain(Chain):
    """A chain whose chunks advance on ``device``; ``threads`` draw what lies outside the span."""

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
        name = self.problem.loss
        loss = outputs.tensor_loss(name) if isinstance(self.data, OutputsData) else LOSSES[name]
        return ACTIVATIONS[self.reduction.problem.activation], loss

    @property
    def fused(self) -> bool:
        """Whether there are kernels for the passes over its activations, apart from those in torch."""
        fitting, activation = self.layout.outputs <= outputs.MOST_OUTPUTS, self.data.activation
        activation = activation if isinstance(activation, int) else activation.code
        return fitting and types.CALLED not in (activation, self.data.loss)

    @property
    def place(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"torch on {self.device.type}"

    def start(self, first_path: int, paths: int) -> DeviceChunk:
        """Return paths at step 0; host memory is not touched before it is needed."""
        thetas = aligned_zeros((paths, self.layout.size), self.layout.dtype)
        return DeviceChunk(first_path, 0, thetas, np.zeros((paths, 2, self.reduction.processes)))

    def step_seconds(self) -> float:
        """Return a cost of almost zero: `advance` checks the clock itself."""
        return 1e-12

    def ensemble(self, chunk: Chunk, diverged: np.ndarray) -> Ensemble:
        """Bring the states of a chunk to the device."""
        kind = OutputsEnsemble if isinstance(self.data, OutputsData) else ScalarEnsemble
        return kind(self, chunk, diverged)

    def chunk_paths(self, paths: int, threads: int) -> int:
        """Return the paths per chunk: as many as fit on the device, up to where more are no faster."""
        state = self.records.origin.nbytes
        # states, a difference of them, and work space
        each = 2.5 * state + self._work_numbers(paths) * self.records.origin.itemsize * 1.2
        most = max(1, min(_CHUNK_BYTES // state, int(0.8 * self._free_bytes() / each)))
        return math.ceil(paths / math.ceil(paths / most))

    def _work_numbers(self, paths: int) -> float:
        """Numbers of work space for each of so many paths."""
        if isinstance(self.data, OutputsData):
            return outputs.work_numbers(self, paths)
        # pre-activations, outputs and residuals; plain passes hold activations, slopes and products of them
        return self.problem.samples * ((1 if self.fused else 5) * self.data.width + 8)

    def _free_bytes(self) -> float:
        if self.device.type != "cuda":
            return 2**30
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def advance(self, chunk: Chunk, results: Results, scratch: Any, stop: int) -> None:
        """Advance a chunk towards step ``stop`` for about `_CALL_SECONDS`, and record on the way."""
        assert isinstance(chunk, DeviceChunk)
        deadline = time.monotonic() + _CALL_SECONDS
        records, diverged = self.records.steps, results.diverged[chunk.paths]
        with _exact_products(self.device):
            if chunk.ensemble is None:
                chunk.ensemble = self.ensemble(chunk, diverged)
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
        """Return the chunk's states, copied to host memory."""
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
            kernels_observe.move_complements(
                chunk.complements[part],
                diverged[part],
                self.records.complement_scales[:, r],
                self.records.complement_dims,
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
    """Use full single precision on the chain's device, whatever the caller's settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
