"""The arrows between the packages: langevin <- bounds <- empirical <- figures, and bounds <- explorer."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import execute

ROOT = Path(__file__).resolve().parents[2]
DOORS = {"simulate.py", "report.py", "sweep.py", "explore.py", "plan.py", "finetune.py"}
# folders and modules of each package, from the bottom up: each imports from those before it
LAYERS = {
    "langevin": ("support", "store", "model", "engine", "solvers", "data", "simulation", "sweeps"),
    "bounds": ("support", "band", "distance", "features", "privacy", "loss", "allocation"),
    "empirical": (
        *("_opacus", "devices", "privacy", "recipe", "data", "networks", "features", "train"),
        *("two_layer", "studies", "planning"),
    ),
    "explorer": (
        *("plane", "views", "presets", "limits", "further"),
        *("worker", "charts", "panels", "player", "controls", "page", "serve"),
    ),
}
# the solvers, and what would bring them in
SOLVERS = tuple(
    f"langevin.{name}" for name in ("engine", "solvers", "data", "simulate", "simulation", "sweeps")
)
FORBIDDEN = {
    "bounds": (*SOLVERS, "explorer", "empirical", "figures", "torch", "opacus"),
    "langevin": ("bounds", "explorer", "empirical", "figures", "torch", "opacus"),
    "explorer": ("empirical", "figures", "torch", "opacus"),
    "empirical": ("explorer", "figures"),
    "figures": ("benchmarks",),
}
# they run on a GPU, and nothing imports them but where that is asked for
ON_GPU = ROOT / "langevin" / "engine" / "gpu"
# what `from langevin import ...` would fetch from a solver
SOLVER_NAMES = ("euler_maruyama", "zeroth_order", "gradient_flow")


def imported(source: str) -> set[str]:
    """Every module that a source names in an import, and ``module.name`` of each ``from`` import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # a relative import stays in its package, whatever its name: none is used, so none is resolved
            assert node.level == 0, "import by the full name"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def crossings(package: str, source: str) -> set[str]:
    """Imports of ``source`` that a module of ``package`` may not have."""
    forbidden = FORBIDDEN[package]
    if package == "bounds":
        forbidden += tuple(f"langevin.{name}" for name in SOLVER_NAMES)
    return {
        name for name in imported(source) if any(name == f or name.startswith(f + ".") for f in forbidden)
    }


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name not in DOORS:
            allowed = {"torch"} if path.parent == ON_GPU else set()
            assert crossings(package, path.read_text(encoding="utf8")) <= allowed, path


def climbs(package: str, layer: str, source: str) -> set[str]:
    """Imports of ``source``, in a layer of ``package``, from layers above it."""
    layers = LAYERS[package]
    above = layers[layers.index(layer) + 1 :]
    found = {name: name.split(".") for name in imported(source)}
    return {name for name, (first, *rest) in found.items() if first == package and rest and rest[0] in above}


@pytest.mark.parametrize("package", LAYERS)
def test_layers(package):
    root = ROOT / package
    found = {path.relative_to(root).parts[0].removesuffix(".py") for path in root.rglob("*.py")}
    doors = {door.removesuffix(".py") for door in DOORS}
    assert found - doors - {"__init__", "__main__"} == set(LAYERS[package])
    for layer in LAYERS[package]:
        for path in [*root.glob(f"{layer}.py"), *(root / layer).rglob("*.py")]:
            assert not climbs(package, layer, path.read_text(encoding="utf8")), path


@pytest.mark.parametrize(
    ("package", "layer", "source"),
    [
        ("langevin", "model", "from langevin.engine import chain"),
        ("langevin", "engine", "def f():\n    from langevin.solvers.errors import Diverged"),
        ("bounds", "distance", "from bounds.loss.norms import expected_norm"),
        ("empirical", "networks", "import empirical.train.stage"),
    ],
)
def test_layers_are_seen(package, layer, source):
    assert climbs(package, layer, source)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_imports_the_doors(package):
    doors = {f"{folder}.{door.removesuffix('.py')}" for folder in FORBIDDEN for door in DOORS}
    for path in sorted((ROOT / package).rglob("*.py")):
        assert not doors & imported(path.read_text(encoding="utf8")), path


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("bounds", "from langevin.solvers.zeroth import zeroth_order"),
        ("bounds", "from langevin.engine import reductions"),
        ("bounds", "from langevin import zeroth_order"),
        ("bounds", "from langevin import gradient_flow"),
        ("bounds", "from langevin.engine import chain"),
        ("bounds", "from langevin.engine.record import dataset"),
        ("empirical", "from figures import style"),
        ("figures", "from benchmarks import environment"),
        ("bounds", "def f():\n    import langevin.engine.kernels.loop"),
        ("langevin", "import bounds.band"),
        ("langevin", "import torch"),
    ],
)
def test_arrows_are_seen(package, source):
    assert crossings(package, source)


def test_the_simulator_does_not_import_torch():
    code = "import sys, langevin.solvers.diffusion, langevin.simulate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("langevin.simulate", []),
        ("langevin.report", ["run.nc"]),
        ("langevin.explore", ["--no-browser"]),
        ("langevin.sweep", ["grid.toml"]),
        ("bounds.plan", ["features.npz", "--epsilon", "1"]),
        ("empirical.finetune", []),
    ],
)
def test_a_signal_while_modules_load_ends_a_command_in_its_own_words(tmp_path, module, arguments):
    script = (
        "import signal, sys\n"
        "class Late:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'numpy':\n"
        "            signal.raise_signal(signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Late())\n"
        f"from {module} import main\n"
        f"sys.exit(main({arguments!r}))\n"
    )
    done = execute([sys.executable, "-c", script], cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
