"""Checkpoints: files, the state of a run, the settings that a resume may not change, and which are kept."""
