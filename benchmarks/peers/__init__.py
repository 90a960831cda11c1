"""The peers: the same drift and the same noise, written as well as each library allows.

All peers except `torch_vmap` and `vmap_outputs` use our closed form of per-sample norms: products over a
batch of paths, without per-sample gradients. Each module states what else was optimised for its library.
"""
