"""Where rows come from. This room does not interpret rows; it imports no other room of data/.

- `files.py`: which files make up a split, with those of a URL downloaded first.
- `json_text.py`: how files are opened, how a line is parsed, and how bad lines are named.
- `readers.py`: the rows of files, one after the other or as a `datasets.Dataset`; JSON Lines stay text in the column
  `RAW`.
- `source.py`: `Source`, the rows of one split of a Hub id, folder, file, glob or URL, and the fingerprint of their
  contents.
- `columns.py`: the value at a dotted path; `where.py`: `Expression`, what is computed from the columns of a row.
- `converter.py`: `Converter`, the user's own function from a row of any shape to rows of a known format.
- `in_memory.py`: rows that a script holds, as files in the cache.
- `mixture.py`: `Part`, one source with a weight and a cap; `Splits`, which parts are train, val, test and predict;
  which rows an epoch has.
"""
