"""Benchmarks: `make bench`. Medians and ratios of things measured side by side, never asserted."""
