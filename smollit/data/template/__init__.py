"""The chat template: render, loss spans, token ids."""
