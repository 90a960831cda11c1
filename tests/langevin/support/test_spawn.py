"""Scripts that start worker processes: which are accepted, and the message for the others."""

import subprocess
import sys

import pytest

from empirical import Grid, Recipe, Setting, run_grid
from tests.langevin.sweeps.test_sweep_run import ENVIRONMENT, SMALL

CALL = "require_importable_main('take threads')"
IMPORT = "from langevin.support.spawn import require_importable_main\n"
GUARD = 'if __name__ == "__main__":\n'


def run(code: str, folder, *, piped: bool = False, name: str = "script.py"):
    (folder / name).write_text(code)
    command = [sys.executable, "-"] if piped else [sys.executable, name]
    given = code if piped else None
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, input=given)


@pytest.mark.parametrize(
    "code",
    [
        IMPORT + CALL,
        f"{IMPORT}def main():\n    {CALL}\nmain()",
        f"{IMPORT}try:\n    {CALL}\nfinally:\n    pass",
        f"{IMPORT}{CALL}\n{GUARD}    pass",
        "import other",
    ],
    ids=["plain", "function", "try", "guard afterwards", "imported"],
)
def test_a_script_that_would_run_again(tmp_path, code):
    (tmp_path / "other.py").write_text(IMPORT + CALL)
    done = run(code, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ValueError: workers import the script that starts them, and would run it again")
    assert last.endswith('script.py under if __name__ == "__main__":, or take threads')


def test_a_script_from_standard_input(tmp_path):
    done = run(IMPORT + GUARD + f"    {CALL}", tmp_path, piped=True)
    assert "save it to a file, or take threads" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        f"{IMPORT}{GUARD}    {CALL}",
        f"{IMPORT}def main():\n    {CALL}\n{GUARD}    main()",
        f"import sys\n{IMPORT}if '__main__' != __name__:\n    sys.exit()\n{CALL}",
        f"from threading import Thread\n{IMPORT}Thread(target=lambda: {CALL}).start()",
    ],
    ids=["guard", "function", "early exit", "thread"],
)
def test_a_script_that_can(tmp_path, code):
    done = run(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["-c", IMPORT + CALL], ["-m", "package"]])
def test_what_no_worker_imports(tmp_path, arguments):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(IMPORT + CALL)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sweep_in_a_script_without_a_guard_is_refused_in_a_line(tmp_path):
    code = f"""
from langevin.sweeps import SIMULATIONS, Grid, run_sweep
run_sweep(Grid(SIMULATIONS, {{"sigma": [0.1, 0.2]}}, {SMALL}), "s.zarr", workers=2)
"""
    done = run(code, tmp_path)
    assert done.returncode == 1
    assert "Nanny" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith('under if __name__ == "__main__":, or pass threads=True')


def test_a_grid_of_fine_tunings_asks_the_same(monkeypatch):
    from langevin.sweeps import jobs

    def refuse(instead):
        raise ValueError(instead)

    monkeypatch.setattr(jobs, "require_importable_main", refuse)
    grid = Grid(Setting(), Recipe(), methods=["fft"], seeds=1, trials=1, tuning_seeds=1)
    with pytest.raises(ValueError, match="pass workers=1"):
        run_grid(grid, workers=2, compute=lambda *_: {"test_accuracy": 1.0})
    assert run_grid(grid, compute=lambda *_: {"test_accuracy": 1.0}).attrs["left"] == 0
