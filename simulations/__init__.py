"""The shipped policies on a model of a pool, in virtual time."""
