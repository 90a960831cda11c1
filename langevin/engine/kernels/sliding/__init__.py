"""Compiled steps of the zeroth-order flow of a ReLU network across hyperplanes."""
