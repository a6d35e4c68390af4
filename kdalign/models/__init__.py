"""Checkpoints: their architecture, loading, capture of activations, students, teachers, profiling."""
