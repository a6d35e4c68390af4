"""The training loop: learner, task trainer, checkpoints, diagnostics, fine-tuning of a teacher."""
