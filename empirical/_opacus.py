"""Import Opacus without changing logging: it would add a handler to the root logger."""

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
    from opacus.grad_sample.conv import compute_conv_grad_sample
    from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
    from opacus.grad_sample.grad_sample_module import (
        create_or_accumulate_grad_sample,
        promote_current_grad_sample,
    )
    from opacus.layers.dp_rnn import DPRNNBase
finally:
    logging.getLogger().removeHandler(_there)

__all__ = [
    "DPRNNBase",
    "GradSampleModule",
    "GradSampleModuleFastGradientClipping",
    "PRVAccountant",
    "PoissonSubsampledGaussianPRV",
    "compute_conv_grad_sample",
    "compute_safe_domain_size",
    "create_or_accumulate_grad_sample",
    "ft_compute_per_sample_gradient",
    "promote_current_grad_sample",
    "register_grad_sampler",
]
