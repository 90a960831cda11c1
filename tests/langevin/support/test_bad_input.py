"""Bad input is refused with its name, value and a remedy; it never becomes a curve of NaN."""

# pyright: reportArgumentType=false, reportCallIssue=false

import decimal

import numpy as np
import pytest
import scipy.sparse

from bounds import Band
from langevin import DPSGD, GramWeights, Phase, Problem, Schedule, Weights, euler_maruyama, zeroth_order
from tests.helpers import random_problem, random_weights

GOOD = Problem([[1.0, 2.0], [3.0, 4.0]], [1, -1])
WEIGHTS = Weights([[1.0, 0.0]], [1.0])
SCHEDULE = Schedule.fft(time=1.0, sigma=0.1, clip=1.0)

CASES = {
    "X with one dimension": (lambda: Problem([1.0, 2.0], [1, -1]), r"X must have 2 dimension"),
    "empty X": (lambda: Problem(np.zeros((0, 2)), []), r"X must not be empty"),
    "X and y that do not fit": (
        lambda: Problem([[1.0]], [1, -1]),
        r"X and y must have the same length, got 1 and 2",
    ),
    "NaN": (lambda: Problem([[np.nan, 1.0]], [1]), r"X must be finite, got nan at index \(0, 0\)"),
    "infinity": (lambda: Problem([[1.0]], [np.inf], loss="square"), r"y must be finite, got inf"),
    "labels 0 and 1": (lambda: Problem([[1.0], [2.0]], [0, 1]), r"labels -1 and \+1, got 0.0 at index 0"),
    "text": (lambda: Problem([["a"]], [1]), r"X must be an array of real numbers"),
    "complex numbers": (lambda: Problem([[1j]], [1]), r"X must be an array of real numbers"),
    "an array of them": (lambda: Problem(np.array([[1j]]), [1]), r"X must be an array of real numbers"),
    "activation": (
        lambda: Problem([[1.0]], [1], activation="sine"),
        r"activation must be one of 'relu', 'linear', 'gelu', 'tanh'; got 'sine'",
    ),
    "loss": (lambda: Problem([[1.0]], [1], loss="hinge"), r"loss must be one of"),
    "half a test set": (
        lambda: Problem([[1.0]], [1], X_test=[[1.0]]),
        r"X_test and y_test must be given together",
    ),
    "test set of another dimension": (
        lambda: Problem([[1.0]], [1], X_test=[[1.0, 2.0]], y_test=[1]),
        r"X_test must have as many columns as X, got 2 and 1",
    ),
    "W and v that do not fit": (lambda: Weights([[1.0]], [1.0, 2.0]), r"W and v must have the same length"),
    "negative clip": (lambda: Phase("fft", 1.0, clip=-1.0), r"clip must be positive or None, got -1.0"),
    "zero clip": (lambda: Phase("fft", 1.0, clip=0), r"clip must be positive or None, got 0"),
    "negative sigma": (lambda: Phase("fft", 1.0, sigma=-0.1), r"sigma must be zero or positive, got -0.1"),
    "zero time": (lambda: Schedule.fft(time=0.0), r"time must be positive, got 0.0"),
    "time that is text": (lambda: Schedule.fft(time="long"), r"time must be a number, got 'long'"),
    "unknown keyword": (lambda: Schedule.fft(time=1.0, noise=1.0), r"noise"),
    "no phases": (lambda: Schedule([]), r"phases must hold at least one"),
    "phases that are none": (lambda: Schedule(["lp"]), r"phases must hold langevin.Phase, got str"),
    "normalised without clip": (
        lambda: Phase("fft", 1.0, clipping="normalised"),
        r"clip must be positive with clipping='normalised', got None",
    ),
    "sample rate": (
        lambda: DPSGD(0.1, 1.0, 1.0, 3, sample_rate=1.5, samples=3),
        r"sample_rate must lie in \(0, 1\]",
    ),
    "problem that is none": (lambda: run(problem="digits"), r"problem must be a langevin.Problem, got str"),
    "weights of another dimension": (
        lambda: run(weights=Weights([[1.0]], [1.0])),
        r"weights.W must have as many columns as problem.X, got 1 and 2",
    ),
    "zero dt": (lambda: run(dt=0.0), r"dt must be positive, got 0.0"),
    "dt over the phase": (lambda: run(dt=3.0), r"dt must be at most the length"),
    "dt of too many steps": (lambda: run(dt=1e-12), r"fewer than 2\^32 steps"),
    "no paths": (lambda: run(paths=0), r"paths must be at least 1, got 0"),
    "paths that are no whole number": (lambda: run(paths=2.5), r"paths must be a whole number, got 2.5"),
    "threads": (lambda: run(threads=0), r"threads must be at least 1, got 0"),
    "precision": (lambda: run(precision="half"), r"precision must be one of 'double', 'single'; got 'half'"),
    "reduce": (lambda: run(reduce="all"), r"reduce must be one of 'auto', 'none', .*; got 'all'"),
    "times beyond the end": (lambda: run(times=[0.0, 2.0]), r"times must lie in \[0, 1\]"),
    "times that fall": (lambda: run(times=[0.5, 0.1]), r"times must increase strictly, got 0.5 before 0.1"),
    "observable": (lambda: run(observables=["speed"]), r"observables must be among .*; got 'speed'"),
    "held-out observable": (lambda: run(observables=["knn_accuracy"]), r"needs held-out points"),
    "noise grid": (lambda: run(noise_dt=0.3), r"dt must be a whole multiple of noise_dt, got 0.1 and 0.3"),
    "tolerance": (lambda: zeroth_order(GOOD, WEIGHTS, SCHEDULE, rtol=0.0), r"rtol must be positive, got 0.0"),
    "more memory than there is": (
        lambda: run(paths=10**12, observables=["alignment"]),
        r"needs .* GiB, .* GiB are free: take fewer paths",
    ),
}


class Lazy:
    """Reads a file whose entries are partly missing, as netCDF's variables do."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.masked_array([[1.0, 9.97e36], [3.0, 4.0]], mask=[[0, 1], [0, 0]])


def torch_tensor(**options):
    torch = pytest.importorskip("torch")
    return torch.ones(2, 2, **{name: getattr(torch, str(v), v) for name, v in options.items()})


def pandas_frame(column):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({"a": column(pd), "b": [1.0, 2.0]})


MASKED = np.ma.masked_array([[1.0, 2.0], [3.0, 1e20]], mask=[[0, 0], [0, 1]])
NO_ARRAYS = {
    "masked": (lambda: MASKED, "no masked values"),
    "masked whole numbers": (lambda: np.ma.masked_equal([[1, 2], [3, -999]], -999), "no masked values"),
    "masked rows": (lambda: list(MASKED), "no masked values"),
    "a masked entry": (lambda: [[1.0, 2.0], [3.0, np.ma.masked]], "no masked values"),
    "a variable with missing values": (Lazy, "no masked values"),
    "dates": (lambda: np.array([["2020", "2021"]] * 2, "M8[Y]"), r"numbers, got datetime64\[Y\]"),
    "spans of time": (lambda: np.array([[1, 2]] * 2, "m8[s]"), r"numbers, got timedelta64\[s\]"),
    "lists of dates": (lambda: [[np.datetime64("2020")] * 2] * 2, r"numbers, got datetime64\[Y\]"),
    "spans among objects": (lambda: np.array([[np.timedelta64(1, "s"), 2.0]] * 2, object), "timedelta64"),
    "sparse matrix": (lambda: scipy.sparse.csr_matrix(np.eye(2)), r"csr_matrix: give {name}\.toarray"),
    "sparse array": (lambda: scipy.sparse.coo_array(np.eye(2)), r"coo_array: give {name}\.toarray"),
    "tensor with gradient": (lambda: torch_tensor(requires_grad=True), r"numbers: .*detach\(\)"),
    "complex tensor": (lambda: torch_tensor(dtype="complex64"), "numbers, got complex64"),
    "brain floats": (lambda: torch_tensor(dtype="bfloat16"), "numbers: .*BFloat16"),
    "digits": (lambda: [["1", "2"], ["3", "4"]], "numbers, got <U1"),
    "bytes": (lambda: [[b"1", b"2"], [b"3", b"4"]], r"numbers, got \|S1"),
    "StringDType": (lambda: np.array([["1", "2"]] * 2, np.dtypes.StringDType()), "numbers, got StringDType"),
    "digits among numbers": (lambda: np.array([["1", 2], [3, 4]], object), "numbers, got '1'"),
    "complex scalars": (lambda: [[np.complex128(1 + 1j), 2], [3, 4]], "numbers, got complex128"),
    "complex objects": (lambda: np.array([[1 + 1j, 2], [3, 4]], object), r"numbers, got \(1\+1j\)"),
    "records": (lambda: np.zeros((2, 2), [("a", float)]), "numbers, got "),
    "None": (lambda: [[None, 1.0], [2.0, 3.0]], "numbers, got None"),
    "half floats that overflowed": (lambda: np.array([[np.inf, 1], [2, 3]], np.float16), "finite, got inf"),
    "longer floats": (lambda: np.array([[np.longdouble("1e400"), 1], [2, 3]]), "finite, got inf"),
    "long integers": (lambda: [[10**400, 1], [2, 3]], "numbers: int too large"),
    "rows of different lengths": (lambda: [[1, 2], [3]], "numbers: "),
    "a dictionary": (lambda: {"a": [1, 2]}, "numbers, got a dict"),
    "a generator": (lambda: (row for row in [[1, 2], [3, 4]]), "numbers, got a generator"),
    "missing integers": (lambda: pandas_frame(lambda pd: pd.array([1, None], "Int64")), "numbers, got <NA>"),
    "columns of text": (lambda: pandas_frame(lambda pd: ["1", "2"]), "numbers, got '1'"),
    "columns of dates": (lambda: pandas_frame(lambda pd: pd.to_datetime(["2020", "2021"])), "numbers, got"),
}
TAKERS = {
    "X": lambda x: Problem(x, [1, -1]),
    "X_test": lambda x: Problem([[1.0, 2.0]] * 2, [1, -1], X_test=x, y_test=[1, -1]),
    "W": lambda x: Weights(x, [1.0, 2.0]),
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_of_numbers_is_refused(kind, name):
    value, message = NO_ARRAYS[kind]
    with pytest.raises((TypeError, ValueError), match=f"{name} must .*{message.replace('{name}', name)}"):
        TAKERS[name](value())


VECTORS = {
    "y": lambda y: Problem([[1.0, 2.0]] * 2, y),
    "y_test": lambda y: Problem([[1.0, 2.0]] * 2, [1, -1], X_test=[[1.0, 2.0]] * 2, y_test=y),
    "v": lambda v: Weights([[1.0, 2.0]] * 2, v),
    "v of a Gram matrix": lambda v: GramWeights([[1.0, 2.0]] * 2, v, neurons=5),
    "v of rows": lambda v: GramWeights.from_rows(np.ones((2, 2)), v),
    "times": lambda t: run(times=t),
    "times of a phase": SCHEDULE.time_in,
    "lower": lambda x: Band([0.0, 1.0], x, [2.0, 2.0], True, "", "new"),
    "curve": Band([0.0, 1.0], 0.0, 2.0, True, "", "new").contains,
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "value", [np.ma.masked_equal([1.0, -1.0], -1.0), np.array([1, 2], "m8[s]"), ["1", "-1"]], ids=str
)
def test_what_is_no_row_of_numbers_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name.split()[0]} must"):
        VECTORS[name](value)


@pytest.mark.parametrize(
    "X",
    [
        np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=False),
        np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=np.zeros((2, 2), bool)),
        np.array([[1, decimal.Decimal(2)], [3.0, np.float32(4)]], object),
        np.array([[1, 2], [3, 4]], np.float16),
        np.array([[1, 2], [3, 4]], np.longdouble),
        np.asfortranarray([[1, 2], [3, 4]]),
    ],
)
def test_numbers_of_any_type_are_taken(X):
    assert (Problem(X, [1, -1]).X == [[1.0, 2.0], [3.0, 4.0]]).all()
    assert type(Problem(X, [1, -1]).X) is np.ndarray


def run(**changes):
    arguments = {"problem": GOOD, "weights": WEIGHTS, "schedule": SCHEDULE, "dt": 0.1, "rng": 0}
    return euler_maruyama(**{**arguments, **changes})


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError, MemoryError), match=message):
        call()


@pytest.mark.parametrize(
    ("problem", "weights", "schedule"),
    [
        (Problem([[2.0]], [1]), Weights([[1.0]], [1.0]), SCHEDULE),
        (Problem(np.zeros((3, 2)), [1, -1, 1]), random_weights(0, 3, 2), SCHEDULE),
        (Problem(np.ones((4, 2)), [1, 1, 1, 1]), random_weights(0, 3, 2), SCHEDULE),
        (random_problem(0, 2, 5000), random_weights(0, 3, 5000), SCHEDULE),
        (random_problem(0), random_weights(0), Schedule.fft(time=0.1, sigma=1e6, clip=1e-300)),
        (random_problem(0), random_weights(0), Schedule.lp(time=0.1, sigma=0.0, clip=1e300)),
        (random_problem(0), Weights(np.zeros((3, 4)), np.zeros(3)), SCHEDULE),
        (random_problem(0), random_weights(0, scale=1e-150), SCHEDULE),
    ],
    ids=["n=d=h=1", "X=0", "one class", "d=5000", "huge sigma", "huge clip", "zero weights", "tiny weights"],
)
def test_extremes_work(problem, weights, schedule):
    result = euler_maruyama(problem, weights, schedule, dt=0.1, paths=3, rng=0)
    for name in result.data_vars:
        assert np.isfinite(result[name]).all(), name
