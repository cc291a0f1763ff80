"""The optimizer of a module: AdamW, its parameter groups, and the learning rate of each step."""
