"""Generated from protos/ by `make proto`; committed, and checked for freshness."""
