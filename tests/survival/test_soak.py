"""A short form of ``python -m tests.soak``."""

import pytest

from langevin import store
from tests import soak


@pytest.mark.parametrize(
    ("kind", "trial"),
    [("simulate", 0), ("simulate", 3), ("sweep", 0), ("plan", 0), ("extremes", 0), ("files", 0)],
)
def test_a_short_soak(kind, trial):
    short = soak.Soak(0, interruptions=2)
    short.trial(kind, trial)
    assert not short.report.findings
    assert short.report.trials[kind] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "grid", "sweep", "plan", "memory"])
def test_a_longer_soak(kind):
    short = soak.Soak(0)
    for trial in range(2):
        short.trial(kind, trial)
    assert not short.report.findings


def test_one_share_beside_another_method_has_tables(tmp_path, monkeypatch, capsys):
    """Two arms, of which one alone lies between probing and fine-tuning: found by the soak."""
    from empirical import finetune

    monkeypatch.chdir(tmp_path)
    grid = ["--methods", "lp-fft", "bitfit", "--shares", "0.5", "--seeds", "1", "--trials", "1"]
    small = ["--steps", "4", "--widths", "4", "--pretrain-epochs", "1", "--tuning-seeds", "1", "--quiet"]
    assert finetune.main([*grid, *small]) == 0
    assert "bitfit" in capsys.readouterr().out


def test_a_wrong_bit_is_found(monkeypatch):
    """Negative control: the soak sees what it looks for, and says so."""
    real, loads = store.load, []

    def wrong(path):
        run = real(path)
        loads.append(path)
        if len(loads) == 2:
            run.loss[0, 0] += 1e-12
        return run

    monkeypatch.setattr(store, "load", wrong)
    short = soak.Soak(0, interruptions=0)
    short.trial("simulate", 0)
    (finding,) = short.report.findings
    assert finding.startswith("--kind simulate --seed 0 --trial 0")
    assert "other bits" in finding
    assert "1 finding(s)" in str(short.report)


def test_growing_memory_is_found():
    short = soak.Soak(0)
    short.report.memory = [300.0, 301.0, 301.0, 302.0, 301.0]
    short.grown()
    assert not short.report.findings
    short.report.memory = [300.0, 320.0, 340.0, 360.0, 380.0]
    short.grown()
    assert "memory grows" in short.report.findings[0]
