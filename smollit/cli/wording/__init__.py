"""What an error of the parser says: the problem taken apart, types in words, and settings by their other names."""
