"""Training objective: losses, terms, layer weights, balancing."""
