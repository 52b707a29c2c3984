"""Every causal family of transformers in tiny form, compared; `python -m tests.families` writes docs/bases.md."""
