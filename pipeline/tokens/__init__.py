"""From text to training batches: tokenizers, shards of token ids, and the order they are read in."""
