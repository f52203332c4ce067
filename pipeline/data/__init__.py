"""Text in, shards and batches out."""
