"""Making a step of a run again."""
