"""The processes of ranks, and what they and the engine say to each other."""
