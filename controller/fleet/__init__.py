"""What is observed of engines and their workers."""
