"""A distillation, stage by stage: prepare, preflight, tokenize, build, train, export; and many runs at once."""
