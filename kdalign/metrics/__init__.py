"""Scores of labels and texts with their signatures, intervals, and paired significance tests."""
