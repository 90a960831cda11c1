"""Solvers: Euler-Maruyama, and the zeroth-order approximation."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "errors": ["Diverged", "Interrupted"],
        "diffusion": ["euler_maruyama"],
        "trajectory": ["trajectory"],
        "zeroth": ["gradient_flow", "zeroth_order"],
    },
)
