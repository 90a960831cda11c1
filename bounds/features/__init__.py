"""What training does to the features."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "assumptions": ["Assumptions", "check_assumptions"],
        "distortion": ["Distortion", "drift_of_expectation"],
    },
)
