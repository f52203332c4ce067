"""Parameters: typed sections, their rules, presets, and the files that are generated from them."""
