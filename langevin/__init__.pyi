from .data.characters import glyphs
from .data.files import from_file, from_npz
from .data.initial import (
    collapsed_features,
    gaussian_features,
    gaussian_gram,
    gaussian_head,
    prototype_head,
    zero_head,
)
from .data.scikit import digits
from .data.synthetic import class_ring, linear_teacher, orthogonally_separable
from .model.dpsgd import DPSGD
from .model.problem import Problem
from .model.schedule import Phase, Schedule
from .model.weights import GramWeights, Weights
from .simulation.figure import plot
from .solvers.diffusion import euler_maruyama
from .solvers.errors import Diverged, Interrupted
from .solvers.zeroth import gradient_flow, zeroth_order

__all__ = [
    "DPSGD",
    "Diverged",
    "GramWeights",
    "Interrupted",
    "Phase",
    "Problem",
    "Schedule",
    "Weights",
    "class_ring",
    "collapsed_features",
    "digits",
    "euler_maruyama",
    "from_file",
    "from_npz",
    "gaussian_features",
    "gaussian_gram",
    "gaussian_head",
    "glyphs",
    "gradient_flow",
    "linear_teacher",
    "orthogonally_separable",
    "plot",
    "prototype_head",
    "zero_head",
    "zeroth_order",
]
