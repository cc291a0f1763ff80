"""The command `chat`: a conversation with one model, or with two of them, in the terminal."""
