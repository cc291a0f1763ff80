"""Examples -> `Batch`; their order, and the position of training in it.

- `dataset.py`: `Examples`, the tokenized rows of all parts of a split.
- `sampler.py`: `BatchSampler`, which examples make up which batch: a pure function. `packing.py`: whole examples into
  packed sequences.
- `streaming.py`: `StreamingExamples`, rows that are read and encoded during the run; `shares.py`: by which shares.
- `collate.py`: examples -> `Batch`.
- `loaders.py`: the DataLoaders. `position.py`: the position of training, which checkpoints hold.
"""
