"""The command `export`: a trained policy as a Hugging Face folder that loads, stops and chats."""
