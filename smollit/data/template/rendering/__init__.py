"""How a chat template renders a chat, and where each content stands in the text."""
