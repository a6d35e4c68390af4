"""Tasks and their splits, sounds and images, tables of files, tokenization by one or two tokenizers, and batches."""
