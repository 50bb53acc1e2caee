"""A small serving engine of real processes: one a rank, experts and KV cache in shared memory.

Expert parallelism with data-parallel attention, on CPUs; `engine.LocalEngine` is its front. What a
token becomes depends neither on its batch nor on where experts stand, so that every migration and
every death of a rank can be held against an undisturbed run, token by token.
"""
