"""Bodies and answers, as clients of OpenAI and vLLM send and expect them."""
