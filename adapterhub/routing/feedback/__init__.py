"""What became of decisions: the log, and learning from it."""
