"""Settings, grids and tables of fine-tunings."""
