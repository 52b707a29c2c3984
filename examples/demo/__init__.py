"""Scripts that make the shipped demo: its base, its four adapters and their scores."""
