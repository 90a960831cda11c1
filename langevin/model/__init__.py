"""What a run is made of: the tables of losses and activations."""
