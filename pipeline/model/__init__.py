"""A GPT assembled from parts: embedding, a trunk of blocks, and a head."""
