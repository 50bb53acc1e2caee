"""A router in few numbers, fitted to a recorded trace, whose statistics fleets then have."""
