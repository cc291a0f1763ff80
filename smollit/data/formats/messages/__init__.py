"""Messages as data sets write them -> role and content as text.

- `roles.py`: `Roles`, the names of roles and of the keys of a message.
- `parse.py`: lists of messages, one message, and turns that are a text; `contents.py`: their texts and tool calls.
- `shapes.py`: lists of messages in other shapes, and turns out of order; `dialogue.py`: one text with several turns.
"""
