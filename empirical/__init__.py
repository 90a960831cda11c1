"""What real DP-SGD does, for comparison with theory and simulation."""
