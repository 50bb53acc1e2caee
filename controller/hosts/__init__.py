"""Where a controller runs."""
