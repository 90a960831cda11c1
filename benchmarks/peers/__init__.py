"""The peers: the same drift and the same noise, written for each library as well as it allows.

All but `torch_vmap` have our closed form of per-sample norms: two products over a batch of paths, no
per-sample gradients. Each module says what else was done for its library.
"""
