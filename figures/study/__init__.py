"""Figures of the study of real DP-SGD."""
