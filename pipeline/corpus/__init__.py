"""Text in: where a dataset comes from, downloads, and the documents in a folder of files."""
