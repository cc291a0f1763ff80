"""What a run shows and records: the console, and the loggers."""
