"""Evaluation: losses, zero-shot tasks, baselines, and loss by depth."""
