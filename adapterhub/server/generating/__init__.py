"""From a body to a call of the hub, and from what it gives to an answer or to the events of a stream."""
