"""Which adapter should answer a request."""
