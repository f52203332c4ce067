"""Text out of a model: sampling."""
