"""Memory, processes and the modes of torch."""
