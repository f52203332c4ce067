"""Files: written in one step, never half, and known by their checksums."""
