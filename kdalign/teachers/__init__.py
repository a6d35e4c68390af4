"""Teachers: a model's activations on the training rows, computed, cached or served, behind one interface."""
