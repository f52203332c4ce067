"""This project beside other programs. Not installed: run from a clone, with `make bench`."""
