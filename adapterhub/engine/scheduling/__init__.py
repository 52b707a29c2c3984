"""Which sequences run, and who runs the steps."""
