"""Measurements of kdalign, run from the repository's root: `python -m benchmarks.run --help` compares it with peers."""
