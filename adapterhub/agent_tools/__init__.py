"""What the agent tools do: text formatting, templates, content rules. Knows neither LangChain nor a model."""
