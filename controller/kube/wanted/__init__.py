"""What follows from what is: functions without a server, a clock or lots."""
