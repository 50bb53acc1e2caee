"""What is changed: plans, operations, and the arbiter between them."""
