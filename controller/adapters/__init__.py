"""How the controller reaches engines: one adapter a kind of engine."""
