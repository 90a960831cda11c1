"""How to split a budget between linear probing and full fine-tuning."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "advice": ["Advice", "split_advice"],
        "alignment": ["AlignmentTime", "alignment_time"],
        "crossover": ["Crossover", "lp_crossover"],
        "share": ["LpShare", "budget_time", "minimum_lp_share"],
        "utility": ["BOUNDS", "UtilityCurve", "utility_curve"],
    },
)
