"""A distillation, stage by stage: prepare, preflight, tokenize, load, build, train, export; and many runs at once."""
