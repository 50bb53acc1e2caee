"""The agent in vLLM's workers. Nothing else knows vLLM or PyTorch."""
