"""Seeded fault stories: a tiny fleet, what operators do, and what goes wrong, in virtual time."""
