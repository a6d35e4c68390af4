"""Vision: small images with labels and with captions, as parquet files."""
