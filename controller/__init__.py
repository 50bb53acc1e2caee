"""Doing: the control plane of a fleet. It imports placer, and is not imported by it."""
