"""Rows -> token ids and loss spans, in an Arrow cache. Imports `sources`, `formats` and `template`.

- `steps.py`: the frozen steps of a row: `RenderedRow`, `TokenizedRow`, `TruncatedRow`, `EncodedRow`, or `DroppedRow`.
- `encoder.py`: `Encoder` runs the steps on batches of rows; `options.py`: the settings that change their tokens.
- `truncate.py`: what is kept of a row that is longer than `max_length`.
- `cache.py`: the Arrow cache, its key, and folders that are damaged; `part.py`: `EncodedPart`, one part of a split.
- `select.py`: `LoadedPart`, the examples of a part that are used: without repeats, and without validation's rows.
- `counts.py`: the counts of a split's examples; `report.py`: `Report`, their sentences, and when a split is refused.
"""
