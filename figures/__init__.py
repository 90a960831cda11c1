"""The figures and tables of the paper's story, each from one script; see `figures.output`."""
