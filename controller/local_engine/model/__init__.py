"""The model: its checkpoint, and its forward pass."""
