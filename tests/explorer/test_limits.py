"""Entries, addresses, and what takes a run further."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

import bounds
from explorer import further, limits
from explorer.presets import PRESETS
from explorer.views import draw
from langevin import simulate
from langevin.simulation.config import Simulation
from langevin.store import files
from langevin.support import options

SIMULATIONS = {
    "plane": {"spread": 0.1, "head": "zero"},
    "unclipped": {"clip": None, "sigma": 0.2},
    "batches": {"sample_rate": 0.5, "head": "prototype"},
    "three": {"data": "ring", "classes": (3,), "loss": "softmax", "head_scale": 0.4},
    "six": {"data": "ring", "classes": (6,), "loss": "ovr", "method": "lp-fft", "lp_share": 0.4},
    "digits": {"data": "digits", "classes": (4, 9), "method": "lp"},
}
SMALL = {"samples": 12, "width": 6, "paths": 2, "time": 0.5}


def small(key):
    return limits.simulation(limits.START | SMALL | SIMULATIONS[key])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.key)
def test_presets_can_be_entered(preset):
    found = limits.entries(preset.simulation)
    assert limits.simulation(found) == preset.simulation
    again, notes = limits.read(limits.query(found))
    assert (again, notes) == (found, [])


@pytest.mark.parametrize("key", SIMULATIONS)
def test_addresses_hold_all_entries(key):
    found = limits.START | SMALL | SIMULATIONS[key]
    if found["data"] not in ("plane", "ring"):
        # which do not read it
        found["samples"] = limits.START["samples"]
        drawn = limits.entries(limits.simulation(found))
        assert drawn["samples"] != found["samples"]
        assert "samples" not in limits.query(drawn)
    assert limits.read(limits.query(found)) == (found, [])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sigma": "-1"}, "sigma must be a number from 0 to 10, got -1.0"),
        ({"data": "digits", "classes": "3"}, "classes must be two digits or more, such as 3,8, got 3"),
        ({"sigma": "nan"}, "sigma must be a number from 0 to 10, got nan"),
        ({"width": "1e9"}, "width must be a whole number from 2 to 128, got '1e9'"),
        ({"head": "big"}, "head must be one of gaussian, zero, prototype, got 'big'"),
        ({"data": "file"}, "start with --data features.npz"),
        ({"data": "/etc/passwd"}, "data must be one of plane, ring, digits, file, got '/etc/passwd'"),
        ({"data": "ring", "classes": "5"}, "loss must be softmax or ovr for these classes"),
        ({"data": "digits", "classes": "3,12"}, "classes must be two different digits from 0 to 9"),
        ({"dt": "1"}, "unknown parameter 'dt' in the address"),
    ],
)
def test_bad_addresses_say_why(parameters, said):
    found, notes = limits.read(parameters)
    assert found == limits.START
    assert said in " ".join(notes)


def test_epsilon_is_never_exceeded():
    for epsilon in (0.5, 1.0, 30.0):
        found = limits.with_epsilon(PRESETS[1].simulation, epsilon, 1e-5)
        spent = bounds.epsilon(found.schedule, 1e-5)
        assert spent <= epsilon < spent * 1.01
    with pytest.raises(ValueError, match=r"epsilon must be larger here, got 0\.1: it takes sigma 2"):
        limits.with_epsilon(PRESETS[1].simulation, 0.1, 1e-5)
    with pytest.raises(ValueError, match="epsilon needs a clip"):
        limits.with_epsilon(replace(PRESETS[1].simulation, clip=None), 1.0, 1e-5)


@pytest.mark.parametrize("key", SIMULATIONS)
def test_the_command_is_the_same_simulation(key):
    simulation = small(key)
    words = shlex.split(further.command(simulation))
    assert words[:3] == ["python", "-m", "langevin.simulate"]
    args, _ = simulate.parser().parse(words[3:])
    found = Simulation(**options.values(Simulation, args))
    # what has no effect is not written
    idle = {name: getattr(simulation, name) for name in simulation.idle}
    assert replace(found, **idle) == simulation


@pytest.mark.parametrize("key", SIMULATIONS)
def test_the_python_and_the_saved_run_are_the_same_paths(key, tmp_path):
    simulation = small(key)
    views = draw(simulation)
    names = {}
    exec(further.python(simulation, views.problem), names)
    assert np.array_equal(names["run"].loss.mean("path").values, views.curves["loss"].mean)
    upper = views.theorems.distance["paper"].upper
    assert np.array_equal(names["distance"].upper, upper, equal_nan=True)
    assert key == "unclipped" or np.isfinite(upper).all()


def test_the_saved_run_is_the_run(tmp_path):
    simulation = small("three")
    saved = tmp_path / "run.nc"
    saved.write_bytes(further.save(simulation))
    run = files.load(saved)
    assert np.array_equal(run.loss.mean("path").values, draw(simulation).curves["loss"].mean)
    assert "squared_distance_upper" in run


def test_the_users_file(tmp_path):
    path = tmp_path / "mine.npz"
    random = np.random.default_rng(0)
    np.savez(path, X=random.standard_normal((20, 5)), y=np.arange(20) % 2)
    entries = limits.START | SMALL | {"data": "file"}
    simulation = limits.simulation(entries, str(path))
    names = {}
    views = draw(simulation, quick=True)
    exec(further.python(simulation, views.problem), names)
    assert np.array_equal(names["run"].loss.mean("path").values, views.curves["loss"].mean)
    assert limits.entries(simulation)["data"] == "file"
    assert views.plane.neurons.shape[-1] == 2
