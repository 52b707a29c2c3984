"""Keys and values: slots, prefix cache, attention over a packed step."""
