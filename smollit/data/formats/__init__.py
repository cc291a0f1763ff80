"""What a row means: Conversation, Preference or Text."""
