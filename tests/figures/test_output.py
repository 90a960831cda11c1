import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from PIL import Image, ImageSequence

from figures import cache, output
from figures.__main__ import main, scripts
from langevin.store import files

SCRIPT = '''
"""A figure."""

import xarray as xr

from figures import output


def compute(quick=False):
    """Data."""
    print("computing")
    return xr.Dataset({"y": ("x", [1.0, 2.0 if quick else 3.0])})


def draw(ax, data):
    ax.plot(data.y)


def main(argv=None):
    return output.run(__file__, compute, draw, size=(2, 1), argv=argv)
'''


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A figure's module, reloaded from its file at each call."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "fig_line.py"
    path.write_text(SCRIPT)

    def run(*argv, edit=("", "")):
        path.write_text(path.read_text().replace(*edit))
        sys.modules.pop("fig_line", None)
        importlib.invalidate_caches()
        # two edits within a second have the same stamp and size
        for cached in tmp_path.rglob("*.pyc"):
            cached.unlink()
        return importlib.import_module("fig_line").main(["--out", str(tmp_path), *argv])

    return run


def test_computes_once(script, capsys, tmp_path):
    assert script() == 0
    assert "computing" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.glob("fig_line.*")} == {".py", ".nc", ".pdf", ".png", ".txt"}
    assert script() == 0
    assert "computing" not in capsys.readouterr().out
    assert script("--force") == 0
    assert "computing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "computes"),
    [
        (("3.0", "4.0"), True),
        (('"""Data."""', '"""The data."""  # of the line'), False),
        (("data.y)", "data.y, color='r')"), False),
    ],
)
def test_computes_anew_what_changed(script, capsys, tmp_path, edit, computes):
    script()
    os.utime(tmp_path / "fig_line.png", (0, 0))
    capsys.readouterr()
    script(edit=edit)
    assert ("computing" in capsys.readouterr().out) == computes
    # what is drawn is drawn from the new script
    assert (tmp_path / "fig_line.png").stat().st_mtime_ns > 0


def test_quick_and_whole_are_told_apart(script, capsys, tmp_path):
    script("--quick")
    capsys.readouterr()
    script()
    assert "computing" in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "fig_line.nc") as data:
        assert data.y[1] == 3.0
        assert data.attrs["machine"]


def test_damaged_data_are_computed_anew(script, capsys, tmp_path):
    script()
    (tmp_path / "fig_line.nc").write_bytes(b"no data")
    capsys.readouterr()
    assert script() == 0
    assert "computing" in capsys.readouterr().out


def test_same_bytes(script, tmp_path):
    files = [tmp_path / f"fig_line{suffix}" for suffix in (".nc", ".pdf", ".png", ".thumbnail.png")]
    script()
    first = [file.read_bytes() for file in files]
    script("--force")
    assert [file.read_bytes() for file in files] == first


TABLE = '''
"""A table."""

import xarray as xr

from empirical.studies.tables import Table
from figures import output


def compute(quick=False):
    print("computing")
    return xr.Dataset({"y": 0.5}, attrs={"machine": "a planet"})


def tabulate(data):
    return Table(["method", "y"], [["a & b", f"{data.y.item()} ± 1"]])


def main(argv=None):
    return output.run_table(__file__, compute, tabulate, argv=argv)
'''


def test_a_table(script, capsys, tmp_path):
    (tmp_path / "fig_line.py").write_text(TABLE)
    assert script() == 0
    assert "| a & b  | 0.5 ± 1 |" in (tmp_path / "fig_line.md").read_text()
    assert "a planet" not in (tmp_path / "fig_line.md").read_text()
    assert r"a \& b & 0.5 $\pm$ 1 \\" in (tmp_path / "fig_line.tex").read_text()
    capsys.readouterr()
    # another layout recomputes nothing
    script(edit=("method", "way"))
    assert "computing" not in capsys.readouterr().out
    assert "| way " in (tmp_path / "fig_line.md").read_text()


ANIMATED = SCRIPT.replace("size=(2, 1)", "size=(2, 1), animate=animate").replace(
    "def main(",
    "def animate(ax, data, progress):\n    ax.axvline(progress)\n    ax.set_xlim(0, 1)\n\n\ndef main(",
)


def test_an_animation(script, tmp_path):
    (tmp_path / "fig_line.py").write_text(ANIMATED)
    gif = tmp_path / "fig_line.gif"
    script("--quick")
    first = gif.read_bytes()
    with Image.open(gif) as image:
        assert sum(1 for _ in ImageSequence.Iterator(image)) == output.FRAMES // 3
    script("--quick", "--force")
    assert gif.read_bytes() == first
    gif.unlink()
    script("--quick")
    assert gif.exists()


def test_digests_follow_the_project_and_the_files_read():
    path = Path(output.__file__)
    found = cache.code(
        str(path), ["constraints.txt"], ["langevin.store.files", "figures.study.studies", "numpy"]
    )
    assert set(found) == {"script", "constraints.txt", "langevin.store.files", "figures.study.studies"}
    del found["constraints.txt"]
    assert cache.code(str(path), [], found) == found


@pytest.mark.parametrize(
    ("edit", "counts"),
    [
        (("SIZE = 2", "SIZE = 3"), True),
        (("return SIZE", "return 2 * SIZE"), True),
        (("COLOUR = 1", "COLOUR = 2"), False),
        (("draw(ax, COLOUR)", "draw(ax, 5)"), False),
        (("numpy as np", "numpy"), False),
    ],
)
def test_of_a_script_only_what_compute_uses_counts(tmp_path, edit, counts):
    text = (
        "import numpy as np\n\nSIZE = 2\nCOLOUR = 1\n\ndef helper():\n    return SIZE\n\n"
        "def compute(quick):\n    return helper()\n\ndef paint():\n    draw(ax, COLOUR)\n"
    )
    assert edit[0] in text
    found = []
    for code in (text, text.replace(*edit)):
        (tmp_path / "fig_any.py").write_text(code)
        found.append(cache.code(str(tmp_path / "fig_any.py"), [], []))
    assert (found[0] != found[1]) == counts


def test_stored_data_are_drawn_and_not_computed(script, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "ROOT", tmp_path)
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    counted = ("size=(2, 1)", "size=(2, 1), settings={'points': (1, 2)}")
    # nothing is kept of a figure without counts
    assert script("--store") == 0
    assert not list((tmp_path / "docs" / "figures").iterdir())
    assert script("--store", "--force", edit=counted) == 0
    stored = tmp_path / "docs" / "figures" / "fig_line.nc"
    assert files.load(stored).y.values.tolist() == [1.0, 3.0]
    capsys.readouterr()
    assert script("--stored") == 0
    assert "stored" in (said := capsys.readouterr().out)
    assert "computing" not in said
    assert script("--stored") == 0
    assert "kept" in capsys.readouterr().out
    # other data are drawn as they are
    files.save(files.load(stored).assign(y=("x", [5.0, 6.0])), stored)
    assert script("--stored") == 0
    assert "stored" in capsys.readouterr().out
    assert files.load(tmp_path / "fig_line.nc").y.values.tolist() == [5.0, 6.0]
    # what is drawn from stored data is not taken for what was computed
    assert script() == 0
    assert "computing" in capsys.readouterr().out


def slow_topics() -> list[str]:
    """Topics whose data are simulated, so that they are stored."""
    modules = {topic: importlib.import_module(name) for topic, name in scripts().items()}
    return [t for t, m in modules.items() if hasattr(m, "SETTINGS") or hasattr(m, "collect")]


def test_nothing_is_stored_that_is_read_from_elsewhere():
    stored = {path.stem for path in (cache.ROOT / cache.STORED).iterdir()}
    assert stored == {scripts()[topic].rpartition(".")[2] for topic in slow_topics()}
    assert "features" not in slow_topics()


@pytest.mark.parametrize("topic", slow_topics())
def test_stored_data_are_of_the_full_version_and_of_the_present_script(topic):
    module: Any = importlib.import_module(scripts()[topic])
    data = files.load(cache.ROOT / cache.stored(module.__file__))
    remedy = f"run python -m figures --store {topic}"
    assert json.loads(data.attrs["drawn"]) == output.chosen(getattr(module, "SETTINGS", {}), False), remedy
    code = json.loads(data.attrs["code"])
    now = cache.code(module.__file__, [], [n for n in code if n.startswith("figures.theory.fig_")])
    assert {name: code[name] for name in now} == now, remedy
    # they are committed
    assert (cache.ROOT / cache.stored(module.__file__)).stat().st_size < 400_000


@pytest.mark.parametrize("topic", ["forecast", pytest.param("loss", marks=pytest.mark.slow)])
def test_stored_data_are_what_is_computed(topic):
    module: Any = importlib.import_module(scripts()[topic])
    stored = files.load(cache.ROOT / cache.stored(module.__file__))
    computed = module.compute()
    for name, values in computed.data_vars.items():
        if values.dtype.kind == "f":
            xr.testing.assert_allclose(values.drop_attrs(), stored[name].drop_attrs(), rtol=1e-9)
    assert set(computed.data_vars) == set(stored.data_vars)


def test_versions_to_draw_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["strategies", "--quick", "--stored"])
    assert "exclude each other" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(script, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert script("--out", str(tmp_path / "file")) == 1
    assert "out must be writable" in capsys.readouterr().err


def test_every_script_is_found():
    root = Path(output.__file__).parent
    files = {path.stem for kind in ("fig", "tab") for path in root.rglob(f"{kind}_*.py")}
    assert {name.rpartition(".")[2] for name in scripts().values()} == files
    assert "strategies" in scripts()


def test_an_unknown_topic(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["nothing"])
    assert caught.value.code == 2
    assert "topic must be one of" in capsys.readouterr().err


def test_a_failure_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "figures", "strategies", "--out", str(tmp_path / "file")],
        cwd=output.ROOT,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "strategies failed" in done.stdout


# what a figure's data have of what its settings count: dimensions, or words of an attribute
COUNTED = {
    "assumptions": {"pairs of classes": "pair"},
    "budget": {"shares": "share", "budgets": "epsilon"},
    "clipping": {
        "thresholds": "threshold",
        "times": "time",
        "thresholds on digits": "digit_threshold",
        "learning rates": "rate",
    },
    "clipping_share": {"thresholds": "threshold", "shares": "share"},
    "error": {"values of sigma": "sigma", "values of width": "width", "values of dim": "dim"},
    "heads": {"data sets": "mean over {} data sets"},
    "neurons": {"noisy paths": "over {} paths of the diffusion"},
}
# what is the same in both versions
WHOLE = (
    *("strategies", "features", "gains", "gains_real", "best_share", "rules", "backbones", "regret"),
    *("shares", "small"),
    *("planner", "aims", "tasks", "calibration", "hedge", "features_real", "lite0", "real"),
)


def require_truth(topic: str, data: xr.Dataset) -> None:
    """Counts that captions quote are those of the data."""
    assert (output.versions(data) is None) == (topic in WHOLE)
    drawn = json.loads(data.attrs["drawn"])
    about = " ".join(str(variable.attrs.get("long_name")) for variable in data.variables.values())
    for name, where in COUNTED.get(topic, {}).items():
        if "{}" in where:
            assert where.format(drawn[name]) in about
        else:
            assert data.sizes[where] == drawn[name], name


# other tests check their data, and `make docs` makes the same versions of all of them
LONG = ("assumptions", "budget", "classes", "clipping", "error", "linear", "neurons", "shares")


@pytest.mark.parametrize(
    "topic", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in scripts()]
)
def test_quick_versions(topic, tmp_path):
    assert importlib.import_module(scripts()[topic]).main(["--quick", "--out", str(tmp_path)]) == 0
    made = {path.suffix for path in tmp_path.iterdir()}
    require_truth(topic, xr.load_dataset(tmp_path / f"{scripts()[topic].rpartition('.')[2]}.nc"))
    assert made - {".gif"} == (
        {".nc", ".md", ".tex", ".txt"} if ".tab_" in scripts()[topic] else {".nc", ".pdf", ".png", ".txt"}
    )


def test_a_line_of_a_caption_does_not_end_within_a_word(tmp_path):
    script = tmp_path / "fig_x.py"
    # the line has room for the part before the hyphen, and not for the word
    text = " ".join(["word"] * 20)
    script.write_text(f'"""Title.\n\n{text} Fashion-MNIST.\n"""\n', encoding="utf8")
    assert output.quoted(script, None, xr.Dataset()) == f"{text}\nFashion-MNIST.\n"
