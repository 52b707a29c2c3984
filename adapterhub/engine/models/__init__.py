"""The forward passes of packed steps: transformers' own, and written out for decoders of Llama's structure."""
