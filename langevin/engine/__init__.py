"""The engine: chains of paths, their noise, results and reductions."""
