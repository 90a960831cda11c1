"""Compiled code on disk: cached, damaged, stale, and in folders that are not writable."""

import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba.core import caching, config

from langevin.engine.kernels import jit
from tests.helpers import execute
from tests.project.test_imports import ROOT
from tests.survival.damage import damaged

SOURCE = """
from langevin.engine.kernels.jit import njit

@njit(nogil=True)
def half(x):
    return x / 2

@njit(nogil=True)
def above(x):
    return half(x) + 1
"""


@dataclass
class Code:
    """Return a module of compiled functions; each call loads it as a new process does."""

    source: Path

    def __call__(self) -> Any:
        names: dict[str, Any] = {"__name__": "code"}
        exec(compile(self.source.read_text(), str(self.source), "exec"), names)
        return SimpleNamespace(**names)

    def files(self, suffix: str) -> list[Path]:
        return sorted((self.source.parent / "__pycache__").glob(f"code.above*{suffix}"))


@pytest.fixture
def code(tmp_path, monkeypatch):
    source = tmp_path / "package" / "code.py"
    source.parent.mkdir()
    source.write_text(SOURCE)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(jit, "_warned", set())
    jit._stamp.cache_clear()

    yield Code(source)
    jit._stamp.cache_clear()


def compiled(function) -> tuple[int, int]:
    """Return how many signatures came from disk, and how many were compiled."""
    stats = function.stats
    return sum(stats.cache_hits.values()), sum(stats.cache_misses.values())


def test_code_is_cached_for_the_next_process(code):
    first = code().above
    assert (first(3.0), compiled(first)) == (2.5, (0, 1))
    second = code().above
    assert (second(3.0), compiled(second)) == (2.5, (1, 0))


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("seed", range(4))
def test_damage_is_replaced(code, suffix, seed):
    code().above(3.0)
    (file,) = code.files(suffix)
    whole = file.read_bytes()
    what, content = damaged(whole, np.random.default_rng(seed))
    file.write_bytes(content)
    again = code().above
    assert again(3.0) == 2.5, what
    third = code().above
    assert (third(3.0), compiled(third)) == (2.5, (1, 0)), what


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_truncated_file_is_compiled_again(code, monkeypatch, suffix):
    code().above(3.0)
    (file,) = code.files(suffix)
    for length in (0, 1, file.stat().st_size // 2, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:length])
        # the control: numba's own cache fails
        with monkeypatch.context() as patch:
            patch.setattr(jit._Cache, "load_overload", caching.Cache.load_overload)
            with pytest.raises((EOFError, pickle.UnpicklingError)):
                code().above(3.0)
        again = code().above
        assert (again(3.0), compiled(again)) == (2.5, (0, 1))


def test_code_of_another_signature_is_compiled_again(code):
    function = code().above
    assert (function(3.0), function(3)) == (2.5, 2.5)
    one, other = code.files(".nbc")
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    again = code().above
    assert (again(3.0), again(3)) == (2.5, 2.5)


def test_a_change_of_a_callees_file_compiles_its_callers_again(code, monkeypatch, tmp_path):
    code().above(3.0)
    callee = tmp_path / "callee.py"
    callee.write_text("x = 1")
    monkeypatch.setattr(jit, "SOURCES", [*jit.SOURCES, callee])
    for expected in ((0, 1), (1, 0)):
        jit._stamp.cache_clear()
        function = code().above
        function(3.0)
        assert compiled(function) == expected
    callee.write_text("x = 2")
    jit._stamp.cache_clear()
    function = code().above
    function(3.0)
    assert compiled(function) == (0, 1)


def test_all_compiled_code_is_in_one_folder():
    compiles = re.compile(r"^from (langevin\.engine\.kernels\.jit import .*njit|numba\S* import)", re.M)
    using = {path for path in (ROOT / "langevin").rglob("*.py") if compiles.search(path.read_text("utf8"))}
    assert using
    assert using <= set(jit.SOURCES)
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "from numba import njit" not in path.read_text(encoding="utf8"), path


def test_nothing_writable_warns_once(code, tmp_path):
    # files instead of the folders: not writable even for root
    (code.source.parent / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    module = code()
    with pytest.warns(UserWarning, match=r"each start compiles again.*set NUMBA_CACHE_DIR") as caught:
        found = [module.above(3.0), module.half(3.0), module.above(3)]
    assert found == [2.5, 1.5, 2.5]
    assert len(caught) == 1


def test_worker_processes_do_not_repeat_the_warning(code, monkeypatch, tmp_path):
    (code.source.parent / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    monkeypatch.setattr(jit, "parent_process", object)
    # a warning would be an error
    assert code().above(3.0) == 2.5


def test_a_read_only_package_includes_its_compiled_code(code, monkeypatch, tmp_path):
    code().above(3.0)
    (tmp_path / "home").write_text("")

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    function = code().above
    assert (function(3.0), compiled(function)) == (2.5, (1, 0))


def test_a_full_disk_is_not_an_error(code, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert code().above(3.0) == 2.5


@pytest.mark.parametrize("kind", ["file", "missing", "below a file"])
def test_a_given_folder(code, monkeypatch, tmp_path, kind):
    named = tmp_path / "named"
    if kind != "missing":
        named.write_text("")
    monkeypatch.setattr(config, "CACHE_DIR", str(named / "deeper" if kind == "below a file" else named))
    assert code().above(3.0) == 2.5
    found = list(named.rglob("code.above*.nbc")) if kind == "missing" else code.files(".nbc")
    assert len(found) == 1


def test_without_a_home_no_folder_is_named_after_it(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert caching.UserWideCacheLocator not in jit._locators()
    monkeypatch.undo()
    assert caching.UserWideCacheLocator in jit._locators()


@pytest.mark.slow
def test_a_command_where_nothing_can_be_written(tmp_path):
    for package in ("langevin", "bounds"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in {path.parent.relative_to(ROOT) for path in jit.SOURCES}:
        (tmp_path / folder / "__pycache__").write_text("")
    unset = ("NUMBA_CACHE_DIR", "NUMBA_CACHE_LOCATOR_CLASSES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": os.devnull, "XDG_CACHE_HOME": f"{os.devnull}/cache"}
    command = [sys.executable, "-m", "langevin.simulate", "--width", "8", "--time", "0.01", "--paths", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled code cannot be kept") == 1
    assert not list(tmp_path.rglob("*.nbi"))


# prints bits of runs whose sums the compiler may order as it likes
BITS = """
import hashlib
import numpy as np
from langevin import Problem, Schedule, Weights, euler_maruyama
from tests.helpers import random_problem, random_weights

def show(problem, weights, reduce, precision, **phase):
    schedule = Schedule.lp_fft(lp_time=0.05, fft_time=0.1, sigma=0.3, clip=1.0, **phase)
    run = euler_maruyama(
        problem, weights, schedule, dt=5e-3, paths=5, rng=0, reduce=reduce, threads=1, precision=precision
    )
    print(hashlib.sha256(run.loss.values.tobytes() + run.squared_distance.values.tobytes()).hexdigest())

for precision in ("double", "single"):
    for n, d, h, activation, reduce in (
        (7, 4, 6, "relu", "span"),
        (12, 3, 16, "linear", "gram"),
        (12, 3, 16, "relu", "span"),
        (33, 9, 40, "gelu", "none"),
        (50, 20, 64, "relu", "none"),
    ):
        problem = random_problem(1, n, d, loss="square", activation=activation)
        show(problem, random_weights(1, h, d, 0.3), reduce, precision)
    rng = np.random.default_rng(0)
    for n, d, h, classes, rate in ((7, 4, 6, 3, 1.0), (33, 9, 40, 3, 0.3), (64, 20, 64, 10, 0.5)):
        problem = Problem(rng.standard_normal((n, d)), np.arange(n) % classes, loss="softmax")
        weights = Weights(rng.standard_normal((h, d)), rng.standard_normal((h, classes)))
        show(problem, weights, "none", precision, sample_rate=rate)
"""


@pytest.mark.slow
def test_code_just_compiled_gives_the_bits_of_code_from_the_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, again = (execute([sys.executable, "-c", BITS], env=environment, check=True) for _ in range(2))
    assert list(tmp_path.rglob("*.nbc"))
    assert len(set(first.stdout.split())) == 16
    assert first.stdout == again.stdout
