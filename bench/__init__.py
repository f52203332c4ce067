"""Benchmarks against other programs. They are not installed; run them from a clone with `make bench`."""
