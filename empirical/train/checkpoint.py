"""Save the state of an unfinished fine-tuning, together with its privacy ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from empirical.privacy.history import History
from empirical.privacy.ledger import Ledger, LedgerError
from langevin.store import checkpoints, errors


def digest(*arrays: np.ndarray) -> str:
    """Return a digest of arrays, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class State:
    """The contents of a checkpoint.

    Attributes
    ----------
    step : int
        Steps done.
    key : ndarray of uint64, shape (2,)
        Of the run's random draws.
    arrays : dict
    """

    step: int
    key: NDArray[np.uint64]
    arrays: dict[str, np.ndarray]

    def named(self, kind: str) -> dict[str, np.ndarray]:
        """Arrays whose names begin with ``kind:``, by the rest of their names."""
        return {
            name.partition(":")[2]: array
            for name, array in self.arrays.items()
            if name.partition(":")[0] == kind
        }


class Checkpoint:
    """A file with the state, and a `Ledger` of the steps made, with which the state must agree.

    Steps are claimed in blocks, in advance: from one checkpoint to the next. What a killed process computed
    since its last checkpoint was never written, and is computed again from the same weights, batches and
    noise; so the ledger neither misses a step nor counts one twice.

    Parameters
    ----------
    path : str or Path
    config : dict
        Everything that the run's numbers depend on, except the key.
    history : History
        What the run will release.
    owner : bool
        Whether this process writes; of several that train together, one does.
    """

    def __init__(
        self, path: str | Path, config: dict[str, Any], history: History, *, owner: bool = True
    ) -> None:
        self.path = Path(path)
        self._ledger_path = self.path.with_name(self.path.name + ".ledger")
        self._config = config
        self._history = history
        self._records = owner and all(m.noise_multiplier for m in history.mechanisms)
        self._ledger: Ledger | None = None
        self._begun = False

    def existing(self) -> Path | None:
        """The state or the privacy record of an earlier run, which a new run must not overwrite."""
        return next((path for path in (self.path, self._ledger_path) if path.exists()), None)

    def claim_block(self, names: Sequence[str], first: int, last: int) -> None:
        """Claim the steps from ``first`` until before ``last``, each of the mechanism ``names[step]``."""
        for name in dict.fromkeys(names[first:last]):
            self.claim(name, names[:last].count(name))

    def claim(self, name: str, steps: int) -> None:
        """Record that ``steps`` of the mechanism ``name`` will have been made in total."""
        if not self._records:
            return
        if self._ledger is None:
            start = Ledger.resume if self._begun else Ledger.create
            self._ledger = start(self._ledger_path, self._history)
            self._begun = True
        missing = steps - self._ledger.claimed(name)
        if missing > 0:
            self._ledger.claim(name, missing)

    def write(self, step: int, key: NDArray[np.uint64], arrays: dict[str, np.ndarray]) -> None:
        """Save the state, atomically."""
        head = self._ledger.head if self._ledger is not None else ""
        checkpoints.save_checkpoint(
            self.path,
            self._config,
            {**arrays, "step": np.array(step), "key": key, "ledger": np.frombuffer(head.encode(), np.uint8)},
        )

    def read(self, key: NDArray[np.uint64] | None) -> State:
        """Read the state, and open its ledger.

        Parameters
        ----------
        key : ndarray or None
            Key of the run to resume; None: whichever the file has.

        Raises
        ------
        StoreError
            If the file is missing, damaged, or of another run.
        LedgerError
            If the ledger is missing, damaged, or does not go through what was saved with the weights.
        """
        if not self.path.exists():
            if self._ledger_path.exists():
                raise LedgerError(
                    f"checkpoint {str(self.path)!r} is missing, but {str(self._ledger_path)!r} says that "
                    "privacy was spent: restore it, or start again under another path and account for both"
                )
            raise errors.StoreError(
                f"there is no checkpoint {str(self.path)!r}: start without resuming, or name another"
            )
        arrays = checkpoints.load_checkpoint(self.path, self._config)
        step = int(arrays.pop("step"))
        stored, head = arrays.pop("key"), arrays.pop("ledger").tobytes().decode()
        if key is not None and stored.tolist() != key.tolist():
            raise errors.StoreError(
                f"checkpoint {self.path} belongs to another run: its rng was another; use the same rng, or "
                "another path"
            )
        if self._records and (head or self._ledger_path.exists()):
            self._ledger = Ledger.resume(self._ledger_path, self._history, head=head or None, drop_torn=True)
            self._begun = True
        return State(step, stored, arrays)

    def fits(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Refuse weights whose names or shapes differ from the network's."""
        own = {name: tuple(v.shape) for name, v in model.state_dict().items()}
        found = {name: tuple(v.shape) for name, v in weights.items()}
        if own != found:
            odd = sorted(set(own.items()) ^ set(found.items()))[0]
            raise errors.StoreError(
                f"checkpoint {self.path} is damaged: {odd[0]!r} of shape {odd[1]} does not fit the network; "
                "restore it from a backup"
            )

    def close(self) -> None:
        """Close the ledger, for others to open; another claim opens it again."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
