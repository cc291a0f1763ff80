"""Pure tensor maths: no Lightning, no transformers, no I/O."""
