from .data import digits, linear_teacher, orthogonally_separable
from .files import from_file, from_npz
from .initial import (
    collapsed_features,
    gaussian_features,
    gaussian_gram,
    gaussian_head,
    prototype_head,
    zero_head,
)
from .problem import GramWeights, Problem, Weights
from .schedule import DPSGD, Phase, Schedule
from .solvers import Diverged, Interrupted, euler_maruyama, gradient_flow, zeroth_order

__all__ = [
    "DPSGD",
    "Diverged",
    "GramWeights",
    "Interrupted",
    "Phase",
    "Problem",
    "Schedule",
    "Weights",
    "collapsed_features",
    "digits",
    "euler_maruyama",
    "from_file",
    "from_npz",
    "gaussian_features",
    "gaussian_gram",
    "gaussian_head",
    "gradient_flow",
    "linear_teacher",
    "orthogonally_separable",
    "prototype_head",
    "zero_head",
    "zeroth_order",
]
