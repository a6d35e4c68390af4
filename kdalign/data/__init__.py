"""Tasks and their splits, tokenization, two tokenizers at once, windows and batches."""
