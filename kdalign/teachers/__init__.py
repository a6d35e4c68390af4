"""Teachers: what a model says on the training rows, computed or from elsewhere, behind one door."""
