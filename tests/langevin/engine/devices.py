"""Which tests need a GPU."""

from __future__ import annotations

import importlib.util

import pytest


def _there() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


GPU = pytest.mark.skipif(not _there(), reason="no CUDA GPU on this machine")
