"""What every public name and every command keeps: light imports, and randomness by keyword."""

import inspect
import sys

import pytest

import bounds
import empirical
import langevin
from tests.helpers import execute

PACKAGES = (langevin, bounds, empirical)
COMMANDS = (
    *("langevin", "langevin.simulate", "langevin.report", "langevin.explore", "langevin.sweep"),
    *("bounds.plan", "empirical.finetune", "figures"),
)
HEAVY = {"torch", "opacus", "matplotlib", "dask", "distributed", "sympy", "panel", "numba", "xarray", "zarr"}
HEAVY |= {"scipy", "sklearn", "pandas", "PIL"}


def imported(code: str) -> tuple[str, set[str]]:
    """What a program prints, and the packages that it has imported by its end."""
    code += "\nimport sys; print('modules', *(name for name in sys.modules if '.' not in name))"
    done = execute([sys.executable, "-c", code], check=True)
    said, _, modules = done.stdout.rpartition("modules")
    return said, set(modules.split())


@pytest.mark.parametrize("package", [package.__name__ for package in PACKAGES])
def test_packages_import_nothing_heavy(package):
    assert not imported(f"import {package}")[1] & (HEAVY | {"numpy"})


def test_heavy_imports_are_seen():
    assert {"numba", "xarray"} <= imported("from langevin import euler_maruyama; import xarray")[1] & HEAVY


def test_data_are_light_until_they_are_made():
    code = "import empirical; empirical.Part; empirical.glyphs; empirical.cifar10"
    assert not imported(code)[1] & {"sklearn", "PIL", "torch", "opacus"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    code = f"import runpy, sys\nsys.argv = ['command', '--help']\ntry:\n    runpy.run_module({command!r}, "
    code += "run_name='__main__', alter_sys=True)\nexcept SystemExit as end:\n    assert not end.code"
    said, modules = imported(code)
    assert "usage: " in said
    assert "(default: None)" not in said
    assert not modules & (HEAVY | ({"numpy"} if command == "langevin.sweep" else set()))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_randomness_is_given_by_keyword(package):
    kinds = {}
    for name in dir(package):
        public = getattr(package, name)
        if callable(public) and not (inspect.isclass(public) and issubclass(public, Exception)):
            for parameter in inspect.signature(public).parameters.values():
                if parameter.name in ("rng", "seed"):
                    kinds[name] = parameter.kind
    assert kinds or package is bounds
    assert [name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY] == []
