"""What happens to a pre-trained two-layer network when it is fine-tuned with differential privacy.

A `Problem` (data, activation, loss) and `Weights` run under a `Schedule` (which parameters train, how
long, with which noise and clipping) through `euler_maruyama` or `zeroth_order`, which give a labelled
run. The theory is that of Ke, Hou, Oh and Fanti, arXiv:2402.18905.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
