"""What runs a base's forward passes: one implementation of `Runner` for each way to compute a step, and the choice."""
