"""Where requests go: which engine of a pool serves one, and which rank of it owns its tokens."""
