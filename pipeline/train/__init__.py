"""Training: one loop, its schedule and optimizer, and checkpoints that cannot be lost."""
