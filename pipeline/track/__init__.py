"""Trackers: they write a run's figures to the log file and the screen."""
