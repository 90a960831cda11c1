"""Features: their measures, pre-training, and what changes them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "collapse": ["Collapse", "neural_collapse"],
        "measures": ["NEIGHBOURS", "cosine_similarity", "knn_accuracy", "linear_cka", "matrix", "unit_rows"],
        "watch": ["FeatureWatch", "MEASURES", "Measure"],
    },
)
