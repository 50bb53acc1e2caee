"""Whether to change something: one policy a file, each a pure function."""
