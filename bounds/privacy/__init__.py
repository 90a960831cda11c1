"""Privacy of the path, and of what is released of it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "budget": ["calibrate", "delta", "epsilon"],
        "diffusion": ["gdp", "renyi", "zcdp"],
        "dpsgd": ["dpsgd_delta", "dpsgd_epsilon", "dpsgd_gdp"],
        "gaussian": ["gdp_delta", "gdp_epsilon"],
        "last_iterate": ["last_iterate_gdp"],
        "neighbours": ["NEIGHBOURS", "Neighbours", "sensitivity"],
    },
)
