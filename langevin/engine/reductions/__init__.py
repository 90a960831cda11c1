"""Exact reductions: the same law in fewer dimensions (new; theory, section 7).

Each holds for the Euler-Maruyama *chain*, and so for the diffusion:

- ``"span"`` (7a): inputs in the span of the data, any net;
- ``"kernel"`` (7b): linear probing of any net in as many dimensions as there are samples;
- ``"gram"`` (7c): a linear net through its Gram matrix, whatever its width;
- ``"collapsed"`` (7e): full fine-tuning of a linear net whose samples all have the same ``y_i x_i``;
- ``"blocks"`` (7d): the zeroth-order flow of a ReLU net whose neurons stay in the cones of their classes,
  in `langevin.zeroth_order` alone.

With K outputs, batches or both, ``"span"`` (8'e), ``"kernel"`` (7b') and ``"gram"`` (7c') hold as well, the
last two with softmax in gauge coordinates (`langevin.model.gauge`), and with K classes ``"blocks"`` (7d').
Collapsed samples of K outputs (7e') are a Gram matrix of ``K + 1`` columns, or K with softmax.
"""
