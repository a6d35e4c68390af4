"""What a run leaves on disk: record, seal, predictions, ablation, archive, model card."""
