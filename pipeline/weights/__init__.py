"""A model as files: found by name, known by hash; our format, transformers' GPT-2 and nanoGPT's."""
