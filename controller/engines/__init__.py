"""How engines are reached and plans are made: one adapter a kind of engine."""
