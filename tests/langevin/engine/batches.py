"""Poisson batches, written apart from the compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

KEY = np.uint64(11), np.uint64(22)


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 in Python's whole numbers."""
    (a, b, c, d), (k0, k1), low = counter, key, 2**32 - 1
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k0, q & low, (p >> 32) ^ d ^ k1, p & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return [a, b, c, d]


def members(n: int, rate: float, path: int, step: int, key: Sequence[Any] = KEY) -> np.ndarray:
    """Whether each sample is in a batch."""
    if rate == 1:
        return np.ones(n, bool)
    first, second = map(int, key)
    words = [word for i in range(-(-n // 4)) for word in philox((i, step, path, 3), (first, second))]
    return np.array(words[:n]) < rate * 2**32
