"""Which format the rows of a split have.

- `detect.py`: `detect_format` chooses it, and refuses at once what would be misread.
- `split.py`: `Split`, the columns and first rows by which it is chosen.
- `labels.py`: columns that say which completions are good ones.
- `advice.py`: why no format fits, and which mapping would read the rows.
"""
