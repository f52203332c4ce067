"""Models as other programs know them."""
