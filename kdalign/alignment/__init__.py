"""Which teacher layer teaches which student layer: the plan, layer maps, similarity, projections, calibration."""
