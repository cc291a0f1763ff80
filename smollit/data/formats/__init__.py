"""The record of a row: Conversation, Preference or Text, or a BadRow with the reason. Imports `sources` only.

- `types.py`: Conversation, Preference and Text, and the invariants of their turns.
- `messages/`: messages as data sets write them -> role and content as text.
- `format.py`: `Format`, how the rows of a split are read; which parts each format has, and the usual names of columns.
- `detection/`: which format the rows of a split have, or why none fits.
- `converters.py`: `to_records`, a row's columns -> Conversation, Preference or Text; `pairs.py`: those of pairs.
- `ranking.py`: `Ranking`, which of several responses is preferred; `groups.py`: rows that belong together.
- `drop_reason.py`: `DropReason`, every reason to drop a row, with advice; `BadRow`.
"""
