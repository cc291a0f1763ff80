"""What one does before the first run: a config of one's own, and a look at the machine."""
