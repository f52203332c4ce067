"""Training: the loop, its log figures, and runs with crash-safe checkpoints."""
