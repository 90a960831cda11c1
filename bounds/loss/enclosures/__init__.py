"""Enclosures of the losses of a block of samples and neurons that train together, one file a statement."""
