"""Figures and tables of the study of real DP-SGD."""
