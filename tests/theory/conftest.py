"""The table of tightness that the slow suite leaves behind."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from langevin.store import locks

TABLE = Path(__file__).resolve().parents[2] / "runs" / "tightness.md"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Tightness:
    """Collects, per statement, the ratios of bound to simulated value.

    They are kept next to the table, so that sessions and workers that measure a part each add up to one.
    """

    def __init__(self):
        self.rows = {}

    def __call__(self, statement, ratios):
        self.rows[statement] = [float(ratio) for ratio in ratios]

    def write(self, path):
        path.parent.mkdir(exist_ok=True)
        kept = path.with_suffix(".json")
        with alone(path.with_suffix(".lock")):
            old = json.loads(kept.read_text(encoding="utf8")) if kept.exists() else {}
            merged = dict(sorted((old | self.rows).items()))
            replace(kept, json.dumps(merged))
            replace(path, self.table(merged))

    @staticmethod
    def table(rows):
        lines = [
            "# Tightness: bound over simulated value",
            "",
            "| statement | instances | least | 25 % | median | 75 % | largest |",
            "|---|---|---|---|---|---|---|",
        ]
        for statement, ratios in rows.items():
            numbers = " | ".join(f"{q:.4g}" for q in np.quantile(ratios, QUANTILES))
            title = statement.replace("|", "\\|")
            lines.append(f"| {title} | {len(ratios)} | {numbers} |")
        return "\n".join(lines) + "\n"


def replace(path, text):
    """Write to a temporary file, then rename it."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf8")
    part.replace(path)


@contextmanager
def alone(path):
    """Hold an exclusive lock."""
    with path.open("w") as file:
        locks.lock(file, wait=True)
        yield


@pytest.fixture(scope="session")
def tightness():
    table = Tightness()
    yield table
    if table.rows:
        table.write(TABLE)
