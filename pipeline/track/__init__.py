"""Where the figures of a run go while it trains: a log file, the screen."""
