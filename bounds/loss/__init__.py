"""Bounds of the loss: zeroth order, and expected under noise."""
