"""The only door to PuLP (HiGHS, CBC) and OR-Tools (CP-SAT)."""
