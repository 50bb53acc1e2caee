"""The command line: main.py, and one file a verb. It reads, writes and prints; decides nothing."""
