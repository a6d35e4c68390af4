"""What is minimised: losses, terms, layer weights, balancing."""
