"""Interventions: change the input, the activations or the weights for the length of a with-block."""
