"""What token tables foretell, measured on routing that they were not made from, and whether that is
worth anything to an engine.

recall.py says how many experts are foretold; alignment.py, rebatching.py and locality.py what
shuffled tokens, batches put together and caches of experts would make of it; predict.py holds all
figures, and advice.py turns them into seconds of a step.
"""
