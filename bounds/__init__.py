"""The theorems, each as a function of a problem, weights, a schedule and times.

A bound never runs the simulation that it is tested against. Where a statement's conditions fail, its
`Band` says so: ``valid`` is False there, with a reason, and the values are NaN.

References
----------
.. [1] Ke, Hou, Oh, Fanti, "Characterizing the Training Dynamics of Private Fine-tuning with
   Langevin diffusion", arXiv:2402.18905.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
