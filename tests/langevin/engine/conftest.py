"""What stands in for a GPU."""

from __future__ import annotations

import pytest

from tests.langevin.engine.devices import GPU


@pytest.fixture(params=["plain", pytest.param("cuda", marks=GPU)])
def device(request, monkeypatch):
    """The plain form stands in for a GPU, or a GPU stands for itself."""
    if request.param == "plain":
        torch = pytest.importorskip("torch")
        monkeypatch.setattr("langevin.engine.gpu.chain.find", lambda name: torch.device("cpu"))
    return "cuda"
