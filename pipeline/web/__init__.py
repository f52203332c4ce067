"""A server for models: an API that OpenAI's clients understand, and the playground."""
