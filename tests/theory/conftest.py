"""The table of tightness that the slow suite leaves behind."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# times on a shared machine say nothing about correctness
settings.register_profile("theory", deadline=None)
settings.load_profile("theory")

TABLE = Path(__file__).resolve().parents[2] / "runs" / "tightness.md"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Tightness:
    """Collects, per statement, the ratios of bound to simulated value."""

    def __init__(self):
        self.rows = {}

    def __call__(self, statement, ratios):
        self.rows[statement] = np.asarray(ratios, dtype=float)

    def write(self, path):
        lines = [
            "# Tightness: bound over simulated value",
            "",
            "| statement | instances | least | 25 % | median | 75 % | largest |",
            "|---|---|---|---|---|---|---|",
        ]
        for statement, ratios in self.rows.items():
            numbers = " | ".join(f"{q:.4g}" for q in np.quantile(ratios, QUANTILES))
            lines.append(f"| {statement} | {len(ratios)} | {numbers} |")
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf8")


@pytest.fixture(scope="session")
def tightness():
    table = Tightness()
    yield table
    if table.rows:
        table.write(TABLE)
