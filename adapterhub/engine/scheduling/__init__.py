"""Which sequences run in a step, where their adapters are, and which thread runs the step."""
