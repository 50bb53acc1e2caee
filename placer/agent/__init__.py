"""What runs inside a serving engine, beside the model: it records, and applies plans."""
