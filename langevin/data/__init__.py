"""Problems and initial weights: synthetic, digits, glyphs, and users' files."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "characters": ["glyphs"],
        "scikit": ["digits"],
        "synthetic": ["class_ring", "linear_teacher", "orthogonally_separable"],
    },
)
