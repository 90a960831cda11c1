"""Distance between the diffusion and its zeroth-order approximation."""
