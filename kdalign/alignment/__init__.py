"""Alignment of student layers with teacher layers: plans, layer maps, similarity, projections, calibration."""
