"""Stored models: finding one by name, and the file formats (ours, transformers' GPT-2, nanoGPT's)."""
