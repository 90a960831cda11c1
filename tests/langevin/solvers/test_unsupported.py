"""What the model describes and no solver runs is refused by name, everywhere."""

from typing import Any

import numpy as np
import pytest

from empirical import run_schedule
from langevin import Problem, Schedule, Weights, euler_maruyama, gradient_flow, zeroth_order
from langevin.simulate import main

WEIGHTS = Weights([[1.0, -0.5], [-0.5, 1.0]], [0.2, -0.3])
SEVERAL = Weights(WEIGHTS.W, np.ones((2, 3)))
SCALAR = Problem(np.eye(2), [1, -1])
REFUSALS: dict[str, tuple[Problem, Weights, dict[str, Any], str]] = {
    "softmax": (
        Problem([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 2], loss="softmax"),
        SEVERAL,
        {},
        "problem must have one output to be simulated, got K=3 with loss 'softmax'",
    ),
    "square": (
        Problem(np.eye(2), np.ones((2, 3)), loss="square"),
        SEVERAL,
        {},
        "problem must have one output to be simulated, got K=3 with loss 'square'",
    ),
    "batches": (SCALAR, WEIGHTS, {"sample_rate": 0.5}, r"sample_rate must be 1 to be simulated, got 0\.5"),
    "margin": (
        SCALAR,
        WEIGHTS,
        {"clip": 1.0, "clipping": "margin"},
        "clipping must be 'flat' or 'normalised' to be simulated, got 'margin'",
    ),
}
SOLVERS: dict[str, Any] = {
    "euler_maruyama": lambda *run: euler_maruyama(*run, dt=0.1, rng=0),
    "zeroth_order": zeroth_order,
    "zeroth_order in steps": lambda *run: zeroth_order(*run, dt=0.1),
    "gradient_flow": lambda *run: gradient_flow(*run, dt=0.1),
    "run_schedule": lambda *run: run_schedule(*run, dt=0.1),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", REFUSALS)
def test_solvers_refuse_what_the_engine_does_not_run(solver, case):
    problem, weights, kinds, message = REFUSALS[case]
    SOLVERS[solver](SCALAR, WEIGHTS, Schedule.lp(time=0.2))
    with pytest.raises(ValueError, match=message):
        SOLVERS[solver](problem, weights, Schedule.lp(time=0.2, **kinds))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "softmax"], "problem must have one output to be simulated, got K=2"),
        (["--loss", "ovr", "--head", "zero"], "problem must have one output to be simulated, got K=2"),
        (
            ["--method", "lp", "--clipping", "margin"],
            "clipping must be 'flat' or 'normalised' to be simulated",
        ),
        (["--clipping", "margin"], "clipping must be 'flat' or 'normalised' with method 'fft', got 'margin'"),
    ],
)
def test_the_command_refuses_it_as_wrong_usage(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([*options, "--samples", "8", "--dim", "3", "--width", "4", "--out", str(tmp_path / "run.nc")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
