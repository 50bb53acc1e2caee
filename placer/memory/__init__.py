"""Memory that processes share and that outlives them: the ground of the local engine, and of vLLM's
agent."""
