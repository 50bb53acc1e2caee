"""Weights that all engines of one machine share, and standbys that have none yet."""
