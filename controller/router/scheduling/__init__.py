"""Which engine and rank a request goes to, before anything of it ran. No I/O and no clock."""
