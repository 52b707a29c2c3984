"""From logits to text: sampling, detokenizing, structured output."""
