"""A vLLM server as an engine, or several that serve the same adapters."""
