"""What requests and answers in OpenAI's form say, as far as it matters to where they go."""
