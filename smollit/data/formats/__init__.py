"""The record of a row: Conversation, Preference or Text, or a BadRow with the reason. Imports `sources` only.

- `types.py`: Conversation, Preference and Text, and the invariants of their turns.
- `messages.py`: messages and dialogues as data sets write them -> role and content as text.
- `format.py`: `Format`, how the rows of a split are read; which parts each format has.
- `converters.py`: `to_record` and one function per format: a row's columns -> Conversation, Preference or Text.
- `detect.py`: which format a split has, from its columns and first rows or from the config; errors if none fits.
- `user_converter.py`: `Converter`, the user's own function from a row of any shape to one of a known format.
- `drop_reason.py`: `DropReason`, every reason to drop a row, with advice; `BadRow`.
"""
