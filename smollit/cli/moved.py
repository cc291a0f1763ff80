"""Settings of earlier versions that have another name now. The parser's error says what to write instead."""

# Old key -> how the sentence "`old key` ..." goes on. An entry here needs no other code.
MOVED: dict[str, str] = {}
