"""Checkpoints: architecture, loading, capture of activations, students (cut, pruned, new), teachers, profiling."""
