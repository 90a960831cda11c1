"""Options of the commands and the data classes that they fill: one name, one default, one help."""

import argparse
import importlib
import json
import re
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import pytest

from langevin import simulate
from langevin.simulation.config import Simulation
from langevin.simulation.reporting import Reporting
from langevin.support import options

COMMANDS = (
    "langevin.simulate",
    "langevin.report",
    "langevin.explore",
    "langevin.sweep",
    "bounds.plan",
    "empirical.finetune",
    "figures.__main__",
)
# fields that are no options: what data classes are made of, and ends of --lr-range
NO_OPTIONS = {
    "Setting": {"shift"},
    "Grid": {"setting", "recipe", "lowest", "highest", "lp_lowest", "lp_highest"},
}
# of the training alone
NOT_PLANNED = {"Setting": {"shift", "precision"}}


def classes(command: str) -> list[type]:
    """The data classes that a command fills."""
    from bounds.plan import PlanOptions
    from empirical import Grid, Recipe, Setting, Shift
    from empirical.planning.settings import PlanSettings
    from empirical.studies.options import GridOptions, OutputOptions, SingleOptions
    from figures.__main__ import FiguresOptions
    from langevin.explore import Exploring
    from langevin.report import ReportOptions
    from langevin.sweep import SweepOptions

    return {
        "langevin.simulate": [Simulation, Reporting],
        "langevin.report": [ReportOptions],
        "langevin.explore": [Exploring],
        "langevin.sweep": [SweepOptions],
        # the file and the task that it is instead of are none by default
        "bounds.plan": [Setting, Shift, PlanSettings, PlanOptions],
        "empirical.finetune": [Setting, Shift, Recipe, Grid, SingleOptions, GridOptions, OutputOptions],
        "figures.__main__": [FiguresOptions],
    }[command]


def parser(command: str) -> options.Parser:
    name = command.replace("empirical.finetune", "empirical.studies.options")
    return importlib.import_module(name).parser()


@pytest.mark.parametrize("command", COMMANDS)
def test_options_and_fields_are_the_same(command):
    p, expected = parser(command), {}
    left_out = NOT_PLANNED if command == "bounds.plan" else NO_OPTIONS
    for kind in classes(command):
        for f in fields(kind):
            if f.name not in left_out.get(kind.__name__, ()):
                default = f.default if f.default_factory is MISSING else f.default_factory()
                expected[f.metadata.get("option", f.name)] = default
    shown = {a.dest: a for a in p._actions if a.help != argparse.SUPPRESS}
    assert set(expected) == set(shown) - {"help", "config", "print_config"}
    assert p.defaults == {name: value for name, value in expected.items() if value is not MISSING}
    for name in expected:
        assert shown[name].help, f"{name} is not documented"
    given = {action.dest: action.choices for action in shown.values() if action.choices}
    for kind in classes(command):
        for name, words in options.choices(kind).items():
            if name in left_out.get(kind.__name__, ()):
                continue
            option = p.renamed.get(name, name)
            assert tuple(given[option]) == words


def test_what_is_resolved_is_the_same():
    from empirical import Recipe, Setting
    from empirical.studies import options as finetune

    args, _ = finetune.parser().parse([])
    assert finetune.setting_of(args) == Setting()
    assert finetune.recipe_of(args) == Recipe()
    args, _ = simulate.parser().parse([])
    assert Simulation(**options.values(Simulation, args)) == Simulation()


def test_choices_are_those_of_the_tables():
    from langevin.model.problem import ACTIVATIONS, LOSSES

    found = options.choices(Simulation)
    assert found["activation"] == tuple(ACTIVATIONS)
    assert found["loss"] == tuple(LOSSES)


def test_defaults_of_recipe_and_setting():
    from empirical import Recipe, Setting, Shift

    assert [stage.lr for stage in Recipe().stages] == [1.0, 0.25]
    assert [stage.lr for stage in Recipe(lr=0.5).stages] == [0.5, 0.5]
    assert [stage.lr for stage in Recipe(lp_lr=0.5).stages] == [0.5, 0.25]
    assert [stage.lr for stage in Recipe("lp").stages] == [1.0]
    assert [stage.lr for stage in Recipe("lp", lr=0.5).stages] == [0.5]
    digits, glyphs = Setting(), Setting("glyphs")
    assert (digits.shift, digits.body, digits.widths) == (Shift(20.0), "mlp", (128, 64))
    assert (glyphs.shift, glyphs.body) == (Shift(0.0), "conv")
    assert Setting(shift=Shift(0.0)).shift.rotation == 0
    assert Setting("features.npz").body == "layer"


# ---- files of options

ARGUMENTS = {
    "langevin.simulate": [
        ["--width", "12", "--clip", "none", "--plot", "--observables", "dead", "alignment", "--no-bounds"],
        [
            "--epsilon",
            "1",
            "--sample-rate",
            "0.1",
            "--clipping",
            "margin",
            "--method",
            "lp",
            "--loss",
            "softmax",
        ],
        ["--compare", "fft", "lp-fft", "--width", "64"],
        ["--schedule", "plan.toml", "--width", "64"],
        [
            "--classes",
            "1",
            "7",
            "4",
            "--json",
            "--data",
            'a "b" \\ é.npz',
            "--sigma",
            "1e-7",
            "--loss",
            "square",
        ],
    ],
    "langevin.report": [["run.nc", "--plot", "--json"]],
    "langevin.explore": [["--data", "mine.npz", "--port", "5006", "--no-browser"]],
    "langevin.sweep": [["grid.toml", "--threads", "--workers", "2"]],
    "bounds.plan": [["features.npz", "--epsilon", "1", "--shares", "0", "0.1", "1", "--no-theory"]],
    "empirical.finetune": [
        ["--seed", "none", "--epsilon", "inf", "--body-options", "depth=[1, 2]", "name=conv"],
        ["--methods", "lp", "fft", "--lr-range", "0.1", "2", "--public-classes", "cat", "dog"],
        ["--rotation", "-20", "--widths", "8", "4", "--features"],
    ],
    "figures.__main__": [["shares", "heads", "--quick"]],
}


def printed(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main([*arguments, "--print-config"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments"), [(command, one) for command, many in ARGUMENTS.items() for one in many]
)
def test_a_printed_file_gives_the_same_options(tmp_path, capsys, command, arguments):
    text = printed(command, arguments, capsys)
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    expected, _ = parser(command).parse(arguments)
    found, given = parser(command).parse(["--config", str(path)])
    assert vars(found) == vars(expected)
    assert not {"epsilon", "sigma"} <= given or command != "langevin.simulate"
    assert printed(command, ["--config", str(path)], capsys) == text


def test_a_printed_file_gives_the_same_run(tmp_path, monkeypatch, capsys):
    from langevin.store import files

    monkeypatch.chdir(tmp_path)
    small = ["--width", "12", "--samples", "8", "--dim", "3", "--time", "0.1", "--dt", "0.01", "--paths", "4"]
    small += ["--no-bounds", "--quiet"]
    Path("run.toml").write_text(printed("langevin.simulate", small, capsys))
    assert simulate.main([*small, "--out", "a.nc"]) == 0
    assert simulate.main(["--config", "run.toml", "--out", "b.nc"]) == 0
    assert files.load("a.nc").equals(files.load("b.nc"))


def test_the_command_line_takes_precedence(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('lp-share = 0.5\nhead_scale = 2\nquiet = true\nobservables = ["dead"]\nclip = "none"\n')
    args, given = simulate.parser().parse(["--config", str(path), "--lp-share", "0.1", "--no-quiet"])
    assert (args.lp_share, args.head_scale, args.quiet, args.clip) == (0.1, 2.0, False, None)
    assert args.observables == ("dead",)
    assert given == {"lp_share", "head_scale", "quiet", "observables", "clip"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgima = 1", "unknown option 'sgima' in options.toml; did you mean 'sigma'?"),
        ("config = 'other.toml'", "unknown option 'config' in options.toml"),
        ("quiet = 1", "quiet in options.toml must be true or false, got 1"),
        ("width = true", "width in options.toml must be a number, text, or a list of these, got True"),
        ("[sigma]\nvalue = 1", "sigma in options.toml must be a number, text, or a list of these"),
        ("width = 'much'", "argument --width: invalid int value: 'much'"),
        ("clip = 'much'", "argument --clip: must be a number or none, got 'much'"),
        ("head = 'big'", "argument --head: invalid choice: 'big'"),
        ("width = ", "--config options.toml cannot be read: Invalid value"),
    ],
)
def test_files_that_are_wrong_are_refused(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("options.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--config", "options.toml"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_are_not_there_are_refused(capsys):
    with pytest.raises(SystemExit):
        simulate.main(["--config", "/no/options.toml"])
    assert "--config /no/options.toml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "missing"),
    [("langevin.report", "RUN"), ("langevin.sweep", "grid.toml"), ("bounds.plan", "--epsilon")],
)
def test_what_is_missing_is_named(capsys, command, missing):
    with pytest.raises(SystemExit) as ended:
        parser(command).parse([])
    assert ended.value.code == 2
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


# ---- what any data class becomes


@dataclass(frozen=True)
class Thing:
    """A thing.

    Parameters
    ----------
    first, second : int
        Number of ``many``, 5 %
        of `them`.
    many : tuple of str
        Words.

    Raises
    ------
    ValueError
        Never.
    """

    first: int
    second: int = 3
    many: tuple[str, ...] = field(default=("a",), metadata={"option": "all_of_them"})


def test_help_is_the_docstring():
    p = options.Parser("thing")
    p.add("things", (Thing, "first second many"))
    said = re.sub(r"\s+", " ", p.format_help())
    assert "--first FIRST Number of --all-of-them, 5 % of them" in said
    assert "--second SECOND Number of --all-of-them, 5 % of them (default: 3)" in said
    assert "Words (default: a)" in said
    args, given = p.parse(["--first", "1"])
    assert options.values(Thing, args) == {"first": 1, "second": 3, "many": ("a",)}
    assert given == {"first"}


@pytest.mark.parametrize(
    "module", ["langevin.simulation.config", "empirical.studies.arms", "empirical.planning.settings"]
)
def test_data_classes_are_light(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numba", "scipy", "xarray", "sklearn", "pandas"} & set(json.loads(done.stdout))
