"""What a history spends, by two accountants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from bounds.privacy.subsampled import OutOfReachError
from empirical.privacy.history import History
from empirical.privacy.spent import EPS_ERROR, epsilon

# and relative to a large epsilon
_RELATIVE_ERROR = 1e-4


@dataclass(frozen=True)
class Report:
    """What a history spends, with everything needed to check the claim.

    Attributes
    ----------
    history : History
    epsilon_prv : float or None
        Upper bound by Opacus's PRV, at error ``eps_error``; None where it cannot answer.
    epsilon_pld : float
        Upper bound by Google's PLD; see `epsilon`.
    eps_error : float
    versions : dict
        Of the accountants.
    reason : str
        Why PRV cannot answer.
    """

    history: History
    epsilon_prv: float | None
    epsilon_pld: float
    eps_error: float
    versions: dict[str, str]
    reason: str = ""

    @property
    def epsilon(self) -> float:
        """Return the larger of the two answers."""
        return max(self.epsilon_pld, self.epsilon_prv or 0.0)

    @property
    def neighbours(self) -> str:
        """Describe the neighbouring relation."""
        if self.history.neighbours == "replace":
            return "replace: data sets that differ in one sample's value"
        return "add-remove: data sets that differ by adding or removing one sample"

    @property
    def sampling(self) -> str:
        """Describe the sampling scheme."""
        if all(m.sample_rate == 1.0 for m in self.history.mechanisms):
            return "none: all samples in every step"
        return "Poisson: each sample independently with probability sample_rate, in every step"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; without noise the two epsilons are infinite."""
        return self.history.as_dict() | {
            "neighbours": self.neighbours,
            "sampling": self.sampling,
            "epsilon_prv": self.epsilon_prv,
            "epsilon_pld": self.epsilon_pld,
            "eps_error": self.eps_error,
            "versions": self.versions,
        }

    def __str__(self) -> str:
        h = self.history
        prv = ""
        if self.epsilon_prv is not None:
            prv = f"{self.epsilon_prv:.4f} (PRV, error {self.eps_error:g}), "
        lines = [f"epsilon {prv}{self.epsilon_pld:.4f} (PLD), at delta {h.delta:g}"]
        lines += [f"no PRV: {self.reason}"] if self.reason else []
        if h.samples is not None:
            size = f"{h.samples} samples"
            if h.delta >= 1 / h.samples:
                size += f"; delta is NOT below 1 / samples = {1 / h.samples:g}"
            lines.append(size)
        for m in h.mechanisms:
            clip = "not stated" if m.clip is None else f"{m.clip:g}"
            lines.append(
                f"{m.name}: {m.steps} step(s), sample rate {m.sample_rate:.6g}, "
                f"noise multiplier {m.noise_multiplier:.6g}, clip {clip}"
            )
        lines += [f"neighbours: {self.neighbours}", f"sampling: {self.sampling}"]
        lines.append("accountants: " + ", ".join(f"{name} {v}" for name, v in self.versions.items()))
        return "\n".join(lines)


def account(history: History, *, eps_error: float = EPS_ERROR) -> Report:
    """Account for a history with both accountants.

    Parameters
    ----------
    history : History
        With every noise multiplier given: a calibrated plan, or what an `empirical.Ledger` has claimed.
    eps_error : float
        See `epsilon`; at least a ten-thousandth of PLD's answer.

    Examples
    --------
    >>> from empirical.privacy.history import plan
    >>> print(account(plan(1000, 100, delta=1e-4, steps=100, noise_multiplier=4.0, clip=1.0)))
    epsilon 0.8164 (PRV, error 0.001), 0.8154 (PLD), at delta 0.0001
    1000 samples
    fft: 100 step(s), sample rate 0.1, noise multiplier 4, clip 1
    neighbours: add-remove: data sets that differ by adding or removing one sample
    sampling: Poisson: each sample independently with probability sample_rate, in every step
    accountants: opacus ..., dp-accounting ...
    """
    pld = epsilon(history, accountant="pld")
    found, reason = None, ""
    eps_error = max(eps_error, _RELATIVE_ERROR * pld) if pld < math.inf else eps_error
    try:
        found = epsilon(history, eps_error=eps_error)
    except (OutOfReachError, MemoryError) as error:
        reason = str(error)
    versions = {name: version(name) for name in ("opacus", "dp-accounting")}
    return Report(history, found, pld, eps_error, versions, reason)
