"""Opacus, imported so that logging stays as it was: it would give the root logger a handler."""

from __future__ import annotations

import logging

# where there is a handler, `logging.basicConfig` does nothing
_there = logging.NullHandler()
logging.getLogger().addHandler(_there)
try:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size
    from opacus.grad_sample import (
        GradSampleModule,
        GradSampleModuleFastGradientClipping,
        register_grad_sampler,
    )
finally:
    logging.getLogger().removeHandler(_there)

__all__ = [
    "GradSampleModule",
    "GradSampleModuleFastGradientClipping",
    "PRVAccountant",
    "PoissonSubsampledGaussianPRV",
    "compute_safe_domain_size",
    "register_grad_sampler",
]
