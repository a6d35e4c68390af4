"""Runs on disk: record, seal, predictions, curves, ablation, archive, model card."""
