"""Grids: reading, complete checks, and description."""

from pathlib import Path

import numpy as np
import pytest

from empirical.studies.sweeps import FINETUNINGS, measures
from langevin.model.observables import OBSERVABLES
from langevin.sweeps import SIMULATIONS, Grid

KINDS = {"simulate": lambda: SIMULATIONS}


def read(tmp_path: Path, text: str) -> Grid:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return Grid.read(path, KINDS)[0]


def test_a_file_is_read(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        'kind = "simulate"\nout = "there.zarr"\n'
        '[fixed]\ndata = "digits"\ntime = 1\ndt = 0.01\n'
        '[sweep]\nsigma = { from = 0.1, to = 10, count = 3, spacing = "log" }\n'
        'clip = [1, "none"]\nclasses = [[3, 8], [1, 7]]\nseed = { start = 5, count = 2 }\n'
        '[record]\nvariables = ["loss", "accuracy"]\ntimes = 4\n'
    )
    grid, out = Grid.read(path, KINDS)
    assert out == "there.zarr"
    assert grid.shape == (3, 2, 2, 2)
    assert grid.labels("sigma") == pytest.approx([0.1, 1, 10])
    assert list(grid.labels("clip")) == ["1", "none"]
    assert list(grid.labels("classes")) == ["3 8", "1 7"]
    values = grid.values((2, 1, 1, 1))
    assert (values["sigma"], values["clip"], values["classes"], values["seed"]) == (10.0, None, (1, 7), 6)
    # 1 is valid for a float and becomes one
    assert isinstance(values["time"], float)
    layout = grid.kind.layout(grid)
    assert list(layout.variables) == ["loss", "loss_standard_error", "accuracy", "accuracy_standard_error"]
    assert layout.coords["time"][1] == pytest.approx([0, 0.33, 0.67, 1])


@pytest.mark.parametrize(
    ("kind", "sweep", "fixed", "idle"),
    [
        (SIMULATIONS, {"sigma": [0.1, 1], "stabiliser": [0.1, 1]}, {}, "stabiliser"),
        (SIMULATIONS, {"lp_share": [0.1, 0.5]}, {"method": "fft"}, "lp_share"),
        (SIMULATIONS, {"samples": [8, 9]}, {"data": "digits"}, "samples"),
        (SIMULATIONS, {"width": [8, 9]}, {"data": "mine.npz"}, "width"),
        (FINETUNINGS, {"rank": [2, 4], "method": ["lp", "fft"]}, {}, "rank"),
        (FINETUNINGS, {"lr": [0.1, 1], "method": ["lp"]}, {"lp_lr": 1}, "lr"),
    ],
)
def test_a_parameter_without_effect_is_not_swept(tmp_path, monkeypatch, kind, sweep, fixed, idle):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", X=np.eye(3), y=np.array([1, -1, 1]), W=np.ones((5, 3)))
    with pytest.raises(ValueError, match=f"cannot sweep '{idle}': no cell uses it"):
        Grid(kind, sweep, fixed)


def test_a_parameter_with_effect_on_one_cell_is_swept():
    assert Grid(FINETUNINGS, {"rank": [2, 4], "method": ["lora", "fft"]}).cells == 4


@pytest.mark.parametrize("kind", [SIMULATIONS, FINETUNINGS], ids=lambda kind: kind.name)
def test_dimensions_and_recorded_variables_have_different_names(kind):
    axes = [parameter.axis for parameter in kind.parameters.values()]
    assert len(set(axes)) == len(axes)
    assert not set(axes) & {"path", "time", "neuron", "record", "status", "error", *OBSERVABLES, *measures()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = 1", "kind must be one of 'simulate'"),
        ("", "kind must be one of 'simulate'"),
        ("kind = ", "grid must be a TOML file"),
        ('kind = "simulate"', "[sweep] is empty: name at least one parameter"),
        ('kind = "simulate"\nsweeps = 1', "unknown parameter 'sweeps' in the grid; did you mean 'sweep'?"),
        ('kind = "simulate"\nout = 3', "out must be a string, got 3"),
        ('kind = "simulate"\nsweep = 3', "sweep must be a table, got 3"),
    ],
)
def test_a_file_that_is_not_a_grid_is_refused(tmp_path, text, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"grid must be a TOML file, got .*No such file"):
        Grid.read(tmp_path / "grid.toml", KINDS)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("sgima = [1]", "unknown parameter 'sgima' in [sweep]; did you mean 'sigma'?"),
        ('sigma = [0.1, "much"]', "sigma must be a number, got 'much'"),
        ("sigma = [0.1, true]", "sigma must be a number, got True"),
        ("sigma = [0.1, nan]", "sigma must be finite, got nan"),
        ("width = [8, 8.0]", "width must be a whole number, got 8.0"),
        ("classes = [[1, 2.5]]", "classes must be a list, each a whole number"),
        ('head = ["gauss"]', "head must be one of 'gaussian', 'zero', 'prototype', got 'gauss'"),
        ("sigma = [1, 1.0]", "sweep.sigma must not repeat values"),
        ("sigma = []", "sweep.sigma must be a non-empty list"),
        ('sigma = "1"', "sweep.sigma must be a non-empty list"),
        ("seed = { count = 0 }", "sweep.seed.count must be at least 1, got 0"),
        ("seed = { cuont = 2 }", "unknown parameter 'cuont' in sweep.seed; did you mean 'count'?"),
        ("seed = [9223372036854775808]", "sweep.seed must be below 2^63"),
        ("seed = [-1]", "seed must be a seed, a whole number from 0; got -1"),
        ('sigma = { from = 0, to = 1, count = 3, spacing = "log" }', "sweep.sigma.from must be positive"),
        ("sigma = { from = 0, count = 3 }", "sweep.sigma.to must be a number, got None"),
        (
            "dt = [0.1]\nlp_share = [0.5, 0.01]",
            "got 0.01 of 10 steps: take a smaller dt (at dt = 0.1, lp_share",
        ),
        ("dt = [0.2]", "times must be at most the number of steps plus 1, got 11 for 5 steps (at dt = 0.2)"),
        (
            "seed = [0]\n[fixed]\nxyz = 1",
            "unknown parameter 'xyz' in [fixed]; known: activation, cl",
        ),
        ("seed = [0]\n[fixed]\nseed = 1", "'seed' is in both [fixed] and [sweep]: remove one"),
        ('seed = [0]\n[record]\nvariables = ["speed"]', "variables must be one of"),
        ('seed = [0]\n[record]\nvariable = ["loss"]', "did you mean 'variables'?"),
        ("sample_rate = [0.5, 1.5]", "sample_rate must lie in (0, 1], got 1.5"),
        ("classes = [[3], [4]]", "loss must be 'softmax' or 'ovr' for 3 classes, got 'logistic'"),
        ("epsilon = [1]", "unknown parameter 'epsilon' in [sweep]"),
        (
            'loss = ["logistic", "softmax"]\n[record]\nvariables = ["head_alignment"]',
            "'head_alignment' needs one output, got loss='softmax': take 'cone_distance'",
        ),
        (
            'loss = ["logistic", "softmax"]\n[record]\nvariables = ["wholly_misaligned"]',
            "'wholly_misaligned' needs K outputs, got loss='logistic': take 'misaligned'",
        ),
        (
            'seed = [0]\n[record]\nvariables = ["class_accuracy"]',
            "variables must be one of",
        ),
        ('data = ["teacher"]\n[record]\nvariables = ["accuracy"]', "needs labels -1 and +1"),
    ],
)
def test_impossible_values_are_refused_before_the_first_cell(tmp_path, sweep, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        read(tmp_path, f'kind = "simulate"\n[sweep]\n{sweep}')
    assert message in str(caught.value)


def test_classes_and_rates_are_swept():
    sweep = {"classes": [[3], [4]], "sample_rate": [0.5, 1]}
    record = {"variables": ["loss", "misaligned", "cone_distance"]}
    fixed = {"loss": "softmax", "time": 0.1, "dt": 0.01, "paths": 2, "width": 8}
    grid = Grid(SIMULATIONS, sweep, fixed, record)
    found, error = grid.kind.compute(grid.values((1, 0)), grid.record)
    assert error is None
    assert np.isfinite(found["loss"]).all()
    # a neuron that is misaligned on one path has a positive mean distance
    assert ((found["cone_distance"] > 0).mean(axis=1) >= found["misaligned"]).all()
    assert found["misaligned"].max() > 0


def test_neurons_need_one_width(tmp_path):
    record = {"variables": ["alignment"]}
    grid = Grid(SIMULATIONS, {"width": [8, 16]}, {}, record)
    with pytest.raises(ValueError, match="cannot sweep 'width': each neuron is recorded"):
        grid.kind.layout(grid)
    grid = Grid(SIMULATIONS, {"sigma": [0.0]}, {"width": 5, "paths": 2}, {**record, "paths": "all"})
    assert grid.kind.layout(grid).variables["alignment"].dims == ("path", "time", "neuron")


def test_times_that_differ_have_no_separate_dimension():
    # half a step does not divide alike
    grid = Grid(SIMULATIONS, {"time": [0.1, 0.2], "lp_share": [0.5, 1.0]}, {"dt": 0.01}, {"times": 3})
    dims, times, _ = grid.kind.layout(grid).coords["time"]
    assert dims == ("total_time", "lp_share", "record")
    assert times[:, 0] == pytest.approx(np.array([[0, 0.05, 0.1], [0, 0.1, 0.2]]))
