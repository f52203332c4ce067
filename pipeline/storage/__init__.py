"""Files and folders: written atomically, and verified by checksums."""
