"""Timings of a step against the floor of the machine and against torchsde; memory; start-up."""
