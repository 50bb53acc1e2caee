"""From the placement that stands to the one that is planned, without a moment in which an expert is
nowhere: a state machine, and what it asks of engines."""
