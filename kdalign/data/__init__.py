"""Tasks and their splits, tables of files, tokenization by one or two tokenizers, corruption, windows and batches."""
