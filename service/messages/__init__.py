"""Messages: bytes to values and back. Pure."""
