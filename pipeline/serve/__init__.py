"""Generating text with a model."""
