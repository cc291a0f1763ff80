"""Examples to Batch; order and position."""
