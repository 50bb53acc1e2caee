"""Hypothesis: no deadlines, since the first example may wait for a compiler."""

from hypothesis import settings

settings.register_profile("placer", deadline=None)
settings.load_profile("placer")
