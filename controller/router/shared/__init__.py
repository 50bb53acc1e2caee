"""What requests share on their way to ranks: the scheduler, the pool, limits and metrics."""
