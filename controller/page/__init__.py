"""A page to watch the control loop on: its sources, and where a browser gets it."""
