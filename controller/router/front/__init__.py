"""The data plane: requests in OpenAI's form, sent to the rank that a scheduler chooses."""
