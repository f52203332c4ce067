"""Getting the text: where a dataset comes from, downloads, and reading the documents in a folder of files."""
