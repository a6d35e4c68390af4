"""Scores of any model on any split: adapters for kinds of task, local, served and trivial models, rescoring."""
