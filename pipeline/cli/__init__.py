"""The commands that are no stages of the pipeline."""
