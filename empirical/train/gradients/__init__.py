"""Engines of per-sample gradients, clipped and summed."""
