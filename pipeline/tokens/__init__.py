"""From text to training batches: tokenizers, shards of token ids, and the order in which they are read."""
