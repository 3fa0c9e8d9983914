"""What comes out of a batch: JSON lines, Parquet, rows of a table, progress."""
