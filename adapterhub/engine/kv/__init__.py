"""The KV cache: slots of running sequences, cached prefixes of prompts, and attention over both."""
