"""The compiled step of a network with K outputs, on all samples or on Poisson batches."""
