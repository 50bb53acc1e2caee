"""What any operator needs of a cluster: its API, caches, a queue, a Lease, events."""
